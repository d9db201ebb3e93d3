"""POST /publish?NUMBER: a message with that number goes to the topic. The answer is the topic's."""

import http.server
import os
import urllib.error
import urllib.request


class Web(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        number = self.path.partition("?")[2]
        message = urllib.request.Request(
            os.environ["EVENTS_URL"] + "/messages",
            data=number.encode(),
            headers={"Content-Type": "text/plain", "Idempotency-Key": number},
        )
        try:
            with urllib.request.urlopen(message, timeout=20) as answer:
                self.answer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            self.answer(error.code, error.read())

    def do_GET(self):
        self.answer(200, b"web")

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


address = ("127.0.0.1", int(os.environ["PORT"]))
http.server.ThreadingHTTPServer(address, Web).serve_forever()
