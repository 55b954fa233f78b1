"""What the Python clients share: their orders, from standard input, and how they mint tokens."""

import json
import sys
import time
import uuid

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ORDERS = json.load(sys.stdin)


def token(tenant):
    now, (kid, seed) = int(time.time()), ORDERS["keys"][tenant]
    return jwt.encode(
        {"aud": ORDERS["audience"], "tenant": tenant, "sub": "py", "role": ORDERS["user"], "iat": now, "exp": now + 60,
         "jti": str(uuid.uuid4())},
        Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed)), algorithm="EdDSA", headers={"kid": kid})


def report(**found):
    json.dump(found, sys.stdout)
