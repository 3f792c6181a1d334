"""Asks Celery: ask_celery.py CLIENT TASKS SECONDS. Prints a line for each task: the word, and what came back."""

import os
import sys

import celery
from celery.exceptions import TimeoutError

client, tasks, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
app = celery.Celery("asks", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.send_task("end", ignore_result=True)
words = [f"{client}-{task}" for task in range(tasks)]
for word, result in [(word, app.send_task("ask", (client, word))) for word in words]:
    try:
        print(word, result.get(timeout=seconds))
    except TimeoutError:
        print(word, "0 hung")
        break
