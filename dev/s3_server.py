#!/usr/bin/env python3
"""An S3 server for tests, on a free port of this machine: moto's, with faults that a test asks for.

Prints {"port": N}, then answers each line of JSON on its input with one on its output, and ends with its input:

  {"s3": "create_bucket", "with": {"Bucket": "worm"}}   a call of boto3's S3 client, which no fault touches
  {"fault": {"methods": ["PUT"], "spare": 3, "count": 2, "status": 503, "done": false}}
                                        after 3 PUTs the next 2 fail, before or after they were done; no count: all of them
  {"fault": null}                       no more faults
  {"deaf": ["If-None-Match"]}           from now on these headers are not looked at, as by a server that does not know them
  {"requests": true}                    the requests since this was asked last
  {"pause": 0.02}                       from now on every request takes so many seconds more
  {"together": true}                    the most requests that were under way at once since this was asked last
  {"only": POLICY}                      from now on only one user may do anything, with this policy: its access key
"""

import base64
import datetime
import json
import sys
import threading
import time

import boto3
from moto import settings
from moto.core.authorization import ActionAuthenticatorMixin
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

HOST = "127.0.0.1"
REGION = "eu-central-1"

LOCK = threading.Lock()
PLAN = {"fault": None, "deaf": [], "pause": 0}
UNDER_WAY = {"now": 0, "most": 0}
REQUESTS = []


def faulty(application):
    """The application, with the planned faults."""

    def respond(environ, start_response):
        with LOCK:
            UNDER_WAY["now"] += 1
            UNDER_WAY["most"] = max(UNDER_WAY.values())
        try:
            time.sleep(PLAN["pause"])
            return answer(environ, start_response)
        finally:
            with LOCK:
                UNDER_WAY["now"] -= 1

    def answer(environ, start_response):
        method = environ["REQUEST_METHOD"]
        query = environ.get("QUERY_STRING", "")
        with LOCK:
            REQUESTS.append(f"{method} {environ['PATH_INFO']}" + (f"?{query}" if query else ""))
            fault = PLAN["fault"]
            strikes = False
            if fault and method in fault["methods"]:
                if fault["spare"] > 0:
                    fault["spare"] -= 1
                elif fault["count"] is None or fault["count"] > 0:
                    strikes = True
                    fault["count"] = None if fault["count"] is None else fault["count"] - 1
            for header in PLAN["deaf"]:
                environ.pop("HTTP_" + header.upper().replace("-", "_"), None)
        if not strikes:
            return application(environ, start_response)
        if fault["done"]:
            for _ in application(environ, lambda *_: None):
                pass
        else:
            # The client is still sending.
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        code = "SlowDown" if fault["status"] >= 500 else "AccessDenied"
        body = f"<Error><Code>{code}</Code><Message>as the test asked</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response(f"{fault['status']} fault", headers)
        return [body if method != "HEAD" else b""]

    return respond


def serve(application):
    """Serve in the background: the port."""
    server = make_server(HOST, 0, application, threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


class Handler(MotoRequestHandler):
    """Keeps connections open, as S3 does, and says nothing."""

    protocol_version = "HTTP/1.1"

    def log(self, *_):
        pass


def client(port, key="test", secret="test"):
    return boto3.client(
        "s3", endpoint_url=f"http://{HOST}:{port}", region_name=REGION, aws_access_key_id=key, aws_secret_access_key=secret
    )


def plain(value):
    """What JSON has no word for."""
    if isinstance(value, (datetime.datetime, datetime.date)):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return base64.b64encode(value.read()).decode()


def only(port, policy):
    """Two users: one who may do what the policy says, and the one whom the commands are of."""
    iam = boto3.client(
        "iam", endpoint_url=f"http://{HOST}:{port}", region_name=REGION, aws_access_key_id="test", aws_secret_access_key="test"
    )
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    keys = []
    for name, document in (("publisher", policy), ("admin", everything)):
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=json.dumps(document))
        keys.append(iam.create_access_key(UserName=name)["AccessKey"])
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    ActionAuthenticatorMixin.request_count = 0
    return [(key["AccessKeyId"], key["SecretAccessKey"]) for key in keys]


def main():
    application = DomainDispatcherApplication(create_backend_app)
    port, own = serve(faulty(application)), serve(application)
    s3 = client(own)
    print(json.dumps({"port": port}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        answer = None
        try:
            if "s3" in command:
                answer = getattr(s3, command["s3"])(**command.get("with", {}))
                answer.pop("ResponseMetadata", None)
            elif "fault" in command:
                with LOCK:
                    PLAN["fault"] = command["fault"]
            elif "deaf" in command:
                with LOCK:
                    PLAN["deaf"] = command["deaf"]
            elif "requests" in command:
                with LOCK:
                    answer = REQUESTS[:]
                    REQUESTS.clear()
            elif "pause" in command:
                PLAN["pause"] = command["pause"]
            elif "together" in command:
                with LOCK:
                    answer, UNDER_WAY["most"] = UNDER_WAY["most"], 0
            elif "only" in command:
                publisher, admin = only(own, command["only"])
                s3 = client(own, *admin)
                answer = publisher
            said = {"ok": answer}
        except s3.exceptions.ClientError as error:
            said = {"error": error.response["Error"]["Code"]}
        print(json.dumps(said, default=plain), flush=True)


if __name__ == "__main__":
    main()
