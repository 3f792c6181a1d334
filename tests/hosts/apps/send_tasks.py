"""Gives Celery tasks: send_tasks.py end, or send_tasks.py CLIENT TASKS. They write their answers down."""

import os
import sys

import celery

app = celery.Celery("asks", broker=os.environ["BROKER"])
if sys.argv[1] == "end":
    app.send_task("end", ignore_result=True)
else:
    client, tasks = sys.argv[1], int(sys.argv[2])
    for task in range(tasks):
        app.send_task("ask", (client, f"{client}-{task}"), ignore_result=True)
