"""The small case, without a host: forks.py HOW CHILDREN SECONDS. Prints a line for each question: the word, and what came back."""

import multiprocessing
import os
import sys
import time

import clients

QUESTIONS = 50
how, children, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])


def work(child):
    for question in range(QUESTIONS):
        for client in clients.CLIENTS:
            word = f"{client}-{child}-{question}"
            os.write(1, f"{word} {clients.ask(client, word)}\n".encode())


def fork():
    pids = []
    for child in range(children):
        pid = os.fork()
        if pid == 0:
            work(child)
            os._exit(0)
        pids.append(pid)
    until = time.monotonic() + seconds
    for pid in pids:
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > until:
                hang(pid)
                break
            time.sleep(0.002)


def process():
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(child,)) for child in range(children)]
    for each in processes:
        each.start()
    until = time.monotonic() + seconds
    for each in processes:
        each.join(max(0, until - time.monotonic()))
        if each.is_alive():
            hang(each.pid)


def pool():
    with multiprocessing.get_context("fork").Pool(children) as workers:
        result = workers.map_async(work, range(children), chunksize=1)
        try:
            result.get(seconds)
        except multiprocessing.TimeoutError:
            os.write(1, b"any 0 hung\n")


def hang(pid):
    os.write(1, f"any {pid} hung\n".encode())
    os.kill(pid, 9)


{"fork": fork, "process": process, "pool": pool}[how]()
clients.note_sessions("after")
