"""A web application: /CLIENT/WORD has the client bring that word back from its server."""

import clients


def app(environ, start_response):
    _, client, word = environ["PATH_INFO"].split("/")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [clients.ask(client, word).encode()]
