"""Of gunicorn. Its own time limit for workers is not what ends a hang here."""

preload_app = True
timeout = 120
graceful_timeout = 2


def on_exit(server):
    """In the parent, when its workers have ended."""
    import clients

    clients.note_sessions("after")
