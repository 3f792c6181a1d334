"""A Celery application. Its workers are children of a process that has imported this, and connected."""

import os

import celery
from celery.signals import worker_shutdown

import clients

app = celery.Celery("tasks", broker=os.environ["BROKER"])
app.conf.worker_prefetch_multiplier = 1


@app.task(name="ask", ignore_result=True)
def ask(client, word):
    """A line for each: the word, and what came back."""
    with open(f"{clients.SESSIONS}/answers", "a") as file:
        file.write(f"{word} {clients.ask(client, word)}\n")


@app.task(name="end", ignore_result=True)
def end():
    """Another child takes this one's place."""
    os._exit(0)


@worker_shutdown.connect
def in_the_parent(**_):
    clients.note_sessions("after")
