"""The classic mistake: clients that are used when a module is imported, which is before the host forks.

In the place of the hosts' own `clients`. CLIENTS names those that there are, LATER those of them that are left alone until there is a
child; SESSIONS is a folder where it is written which sessions they have: of the parent at the import and at the end, and of each child.
"""

import os

import survivor

SESSIONS = os.environ["SESSIONS"]
CLIENTS = os.environ["CLIENTS"].split()
LATER = os.environ.get("LATER", "").split()
PARENT = os.getpid()

noted = set()


def ask(client, word):
    """One line: who answers, whether it was an answer, and what it was."""
    here = os.getpid()
    try:
        answer = survivor.ask(client, word)
        if here != PARENT and (here, client) not in noted:
            noted.add((here, client))
            note_session_of_child(client)
        return f"{here} answer {answer}"
    except Exception as error:
        return f"{here} error {type(error).__module__}.{type(error).__qualname__}: {' '.join(str(error).split())}"


def note_session_of_child(client):
    """A line for each, written by one call."""
    session = survivor.session(client)
    if session is not None:
        file = os.open(f"{SESSIONS}/children", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{os.getpid()} {client} {session}\n".encode())
        os.close(file)


def note_sessions(when):
    """All at once: whoever finds the file finds it whole."""
    lines = []
    for client in CLIENTS:
        if client not in LATER:
            assert survivor.ask(client, f"{client}-{when}") == f"{client}-{when}"
            session = survivor.session(client)
            if session is not None:
                lines.append(f"{client} {session}\n")
    with open(f"{SESSIONS}/writing", "w") as file:
        file.writelines(lines)
    os.rename(f"{SESSIONS}/writing", f"{SESSIONS}/{when}")


note_sessions("before")
