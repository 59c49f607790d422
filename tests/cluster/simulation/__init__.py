"""The whole control plane in one process: virtual time, a store in memory, seeded faults.

What decides is the product's own code (API, election, leader, placement, rollout); what it decides
over is simulated: machines, Envoys, instances, requests. `run.py` plays a seed, `referee.py` says
what must never happen.
"""
