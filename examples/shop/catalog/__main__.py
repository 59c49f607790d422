"""The shop's catalog: nothing but the standard library, in a zip application."""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOODS = ["tea", "cups", "kettles"]
stopping = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # Head and body in one segment: apart, the second waits for an acknowledgement.

    def do_GET(self):
        body = json.dumps({"version": os.environ["AETHER_VERSION"], "goods": GOODS}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if stopping.is_set():
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

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
