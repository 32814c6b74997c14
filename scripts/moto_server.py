"""A stand-in for Amazon S3 on a free port of this machine, for tests.

Writes its URL to standard output as one line, and ends when standard input does: with the process that started it,
however that ends.
"""

import logging
import sys

from moto.moto_server.threaded_moto_server import ThreadedMotoServer

# One line a request is the server's habit; tests make thousands.
logging.getLogger("werkzeug").setLevel(logging.ERROR)

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
print(f"http://{host}:{port}", flush=True)
sys.stdin.buffer.read()
server.stop()
