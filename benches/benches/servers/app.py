"""What gunicorn.conf.py serves."""

import itertools
import os

import redis

ENTRIES = int(os.environ["BENCH_TABLE"])
TABLE = ["%0100d" % number for number in range(ENTRIES)]

POOL = redis.BlockingConnectionPool.from_url(os.environ["BENCH_REDIS"], max_connections=int(os.environ["BENCH_THREADS"]))
REDIS = redis.Redis(connection_pool=POOL)
ASKED = itertools.count(0, 7919)


def app(environ, start_response):
    text = REDIS.get("key")
    if ENTRIES:
        text = TABLE[next(ASKED) % ENTRIES].encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
    return [text]
