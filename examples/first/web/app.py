"""Counts visits and keeps small values in Redis. Knows nothing but its environment."""

import os

from flask import Flask, abort, jsonify, request
from redis import Redis, exceptions
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

# A store that restarts is waited for, about six seconds at most.
# A visit whose answer was lost is counted again: the counter is for show.
store = Redis(
    host=os.environ["STORE_HOST"],
    port=int(os.environ["STORE_PORT"]),
    socket_timeout=5,
    retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), 15),
    retry_on_error=[exceptions.ConnectionError, exceptions.TimeoutError, OSError],
)
INSTANCE = os.environ.get("MAINLAND_INSTANCE", "web")
ZONE = os.environ.get("MAINLAND_ZONE", "")
VALUE_BYTES_MAX = 64 * 1024

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = VALUE_BYTES_MAX


@app.get("/")
def visit():
    return jsonify(visits=store.incr("visits"), instance=INSTANCE, zone=ZONE)


@app.get("/healthz")
def healthz():
    # Without the store on purpose: when it is away, no copy of this is better than another.
    return "ok\n"


@app.post("/set")
def set_value():
    store.set("value:" + name_of_value(), request.get_data())
    return "", 204


@app.get("/get")
def get_value():
    value = store.get("value:" + name_of_value())
    if value is None:
        abort(404)
    return value, 200, {"Content-Type": "application/octet-stream"}


def name_of_value():
    return request.args.get("key") or abort(400, "which `key`?")
