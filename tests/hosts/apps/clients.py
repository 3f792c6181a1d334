"""The classic mistake: connections that are made when a module is imported, which is before the host forks.

CLIENTS names those to make; SESSIONS is a folder where it is written which sessions they have, at the import and at the end.
"""

import os

import psycopg2
import redis
import sqlalchemy

POSTGRES, REDIS, SESSIONS = (os.environ[name] for name in ("POSTGRES", "REDIS", "SESSIONS"))


class Psycopg2:
    """A connection, and what its documentation says to do when it is closed."""

    def __init__(self):
        self.connect()

    def connect(self):
        self.connection = psycopg2.connect(POSTGRES)
        self.connection.autocommit = True

    def first(self, query, *arguments):
        if self.connection.closed:
            self.connect()
        with self.connection.cursor() as cursor:
            cursor.execute(query, arguments)
            return cursor.fetchone()[0]

    def ask(self, word):
        return self.first("select %s::text from pg_sleep(0.001)", word)

    def session(self):
        return self.first("select pg_backend_pid()")


class SQLAlchemy:
    """An engine, whose pool has a connection already."""

    def __init__(self, **options):
        self.engine = sqlalchemy.create_engine(POSTGRES, pool_size=1, max_overflow=0, **options)

    def first(self, query, **arguments):
        with self.engine.connect() as connection:
            return connection.execute(sqlalchemy.text(query), arguments).scalar()

    def ask(self, word):
        return self.first("select cast(:word as text) from pg_sleep(0.001)", word=word)

    def session(self):
        return self.first("select pg_backend_pid()")


class Redis:
    """A client with a pool."""

    def __init__(self):
        self.client = redis.Redis.from_url(REDIS, decode_responses=True)

    def ask(self, word):
        return self.client.echo(word)

    def session(self):
        return self.client.client_id()


class RedisSingleConnection(Redis):
    """A client that holds on to one connection, as a subscription and a pipeline do."""

    def __init__(self):
        super().__init__()
        self.client = self.client.client()


KINDS = {
    "psycopg2": Psycopg2,
    "sqlalchemy": SQLAlchemy,
    "sqlalchemy_with_pre_ping": lambda: SQLAlchemy(pool_pre_ping=True),
    "redis_py": Redis,
    "redis_py_single_connection": RedisSingleConnection,
}
CLIENTS = {name: KINDS[name]() for name in os.environ["CLIENTS"].split()}


def ask(client, word):
    """One line: who answers, whether it was an answer, and what it was."""
    try:
        return f"{os.getpid()} answer {CLIENTS[client].ask(word)}"
    except Exception as error:
        return f"{os.getpid()} error {type(error).__module__}.{type(error).__qualname__}: {' '.join(str(error).split())}"


def session(client):
    try:
        return client.session()
    except Exception as error:
        return f"lost: {type(error).__qualname__}"


def note_sessions(when):
    """All at once: whoever finds the file finds it whole."""
    lines = [f"{name} {session(client)}\n" for name, client in CLIENTS.items()]
    with open(f"{SESSIONS}/writing", "w") as file:
        file.writelines(lines)
    os.rename(f"{SESSIONS}/writing", f"{SESSIONS}/{when}")


note_sessions("before")
