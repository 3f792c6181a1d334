"""The same handler for gunicorn: one GET through a pool. What it is to be is in the environment, as for the others."""

import os

bind = os.environ["BENCH_ADDRESS"]
workers = int(os.environ["BENCH_WORKERS"])
threads = int(os.environ["BENCH_THREADS"])
worker_class = "gthread"
preload_app = True
wsgi_app = "app:app"
chdir = os.path.dirname(os.path.abspath(__file__))
loglevel = "warning"


def post_worker_init(worker):
    with open(os.environ["BENCH_BOOTED"], "a") as booted:
        booted.write("booted\n")
