"""The shop's catalog: nothing but the standard library, in a zip application.

For trying out what a deployment does about a bad version, its environment makes it one:
SHOP_BROKEN ends it at once, SHOP_SILENT never listens, SHOP_ERRORS=0.1 answers a tenth with 500,
SHOP_DELAY_S=0.2 answers late, SHOP_CRASH_AFTER=100 ends with the hundredth request.
"""

import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOODS = ["tea", "cups", "kettles"]
ERRORS = float(os.environ.get("SHOP_ERRORS", "0"))
DELAY_S = float(os.environ.get("SHOP_DELAY_S", "0"))
CRASH_AFTER = int(os.environ.get("SHOP_CRASH_AFTER", "0"))
stopping = threading.Event()
numbers = itertools.count(1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # Head and body in one segment: apart, the second waits for an acknowledgement.

    def do_GET(self):
        status = 200 if self.path == "/health" else self.misbehave()
        body = json.dumps({"version": os.environ["AETHER_VERSION"], "goods": GOODS}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if stopping.is_set():
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def misbehave(self):
        if next(numbers) == CRASH_AFTER:
            print("the catalog fell over", flush=True)
            os._exit(4)
        if DELAY_S:
            time.sleep(DELAY_S)
        return 500 if random.random() < ERRORS else 200

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False  # Closing waits for the requests in flight.
    request_queue_size = 128


def main():
    if os.environ.get("SHOP_BROKEN"):
        print("the catalog cannot find its database", flush=True)
        sys.exit(3)
    if os.environ.get("SHOP_SILENT"):
        signal.pause()
    server = Server(("127.0.0.1", int(os.environ["PORT"])), Handler)
    Handler.timeout = 5

    def stop():
        stopping.set()  # Connections that are kept open end with their next answer.
        server.shutdown()

    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=stop).start())
    print(f"catalog {os.environ['AETHER_VERSION']} listens", flush=True)
    server.serve_forever(poll_interval=0.05)


main()
