"""psycopg 3, as applications use it: transactions, parameters, prepared statements where the connection has them."""

import psycopg
from common import ORDERS, report, token

# 0: every statement is prepared at once; None: none is.
threshold = 0 if ORDERS["prepare"] else None
connect = lambda: psycopg.connect(  # noqa: E731
    host=ORDERS["host"], port=ORDERS["port"], dbname=ORDERS["database"], user=ORDERS["user"], autocommit=True,
    prepare_threshold=threshold)


def one(connection, query, *parameters):
    return [row[0] for row in connection.execute(query, parameters).fetchall()]


def state(connection, query, *parameters):
    try:
        with connection.transaction():
            connection.execute(query, parameters)
    except psycopg.Error as error:
        return error.sqlstate
    return "00000"


seen, left, refused = [], [], []
with connect() as first, connect() as second:
    for number in range(6):
        connection, tenant, other = (first, "acme", "globex") if number % 2 else (second, "globex", "acme")
        used = token(tenant)
        with connection.transaction():
            bound = one(connection, "SELECT agd.bind(%s)", used)
            connection.execute("INSERT INTO plain VALUES (%s, %s, %s)", (tenant, 1000 + number, "py"))
            seen.append([*bound, *one(connection, "SELECT DISTINCT tenant FROM plain"), *one(connection, "SELECT agd.current_principal()")])
        for after in (first, second):
            left.append([*one(after, "SELECT agd.current_tenant()"), *one(after, "SELECT tenant FROM plain")])
        refused.append(state(connection, "SELECT agd.bind(%s)", used))
        try:
            with connection.transaction():
                connection.execute("SELECT agd.bind(%s)", (token(tenant),))
                connection.execute("INSERT INTO plain VALUES (%s, %s, 'x')", (other, 2000 + number))
        except psycopg.Error as error:
            refused.append(error.sqlstate)
report(seen=seen, left=left, refused=refused)
