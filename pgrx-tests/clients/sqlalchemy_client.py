"""SQLAlchemy with its own pool on top: each checked-out connection binds where its transaction begins."""

from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import DBAPIError

from common import ORDERS, report, token

url = URL.create("postgresql+psycopg", username=ORDERS["user"], database=ORDERS["database"],
                 query={"host": ORDERS["host"], "port": str(ORDERS["port"])})
engine = create_engine(url, pool_size=1, max_overflow=0, connect_args={"prepare_threshold": 0 if ORDERS["prepare"] else None})

seen, left, refused = [], [], []
for number in range(6):
    tenant, other = ("acme", "globex") if number % 2 else ("globex", "acme")
    used = token(tenant)
    with engine.begin() as connection:
        bound = connection.execute(text("SELECT agd.bind(:t)"), {"t": used}).scalars().all()
        connection.execute(text("INSERT INTO plain VALUES (:t, :i, 'py')"), {"t": tenant, "i": 3000 + number})
        rows = connection.execute(text("SELECT DISTINCT tenant FROM plain")).scalars().all()
        seen.append([*bound, *rows, *connection.execute(text("SELECT agd.current_principal()")).scalars().all()])
    with engine.connect() as connection:
        left.append([*connection.execute(text("SELECT agd.current_tenant()")).scalars().all(),
                     *connection.execute(text("SELECT tenant FROM plain")).scalars().all()])
    for statements in (
        [("SELECT agd.bind(:t)", {"t": used})],
        [("SELECT agd.bind(:t)", {"t": token(tenant)}), ("INSERT INTO plain VALUES (:t, :i, 'x')", {"t": other, "i": 4000 + number})],
    ):
        try:
            with engine.begin() as connection:
                for statement, parameters in statements:
                    connection.execute(text(statement), parameters)
        except DBAPIError as error:
            refused.append(error.orig.sqlstate)
report(seen=seen, left=left, refused=refused)
