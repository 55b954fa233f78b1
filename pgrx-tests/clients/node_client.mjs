// node-postgres: two clients of one login role, by turns for one tenant and the other.
import { createPrivateKey, randomUUID, sign } from "node:crypto";
import { readFileSync } from "node:fs";
import pg from "pg";

const orders = JSON.parse(readFileSync(0, "utf8"));
const { host, port, database, user } = orders;

function token(tenant) {
  const [kid, seed] = orders.keys[tenant];
  const now = Math.floor(Date.now() / 1000);
  const claims = { aud: orders.audience, tenant, sub: "js", role: user, iat: now, exp: now + 60, jti: randomUUID() };
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const signed = `${part({ alg: "EdDSA", kid })}.${part(claims)}`;
  const der = Buffer.from(`302e020100300506032b657004220420${seed}`, "hex");
  const key = createPrivateKey({ key: der, format: "der", type: "pkcs8" });
  return `${signed}.${sign(null, Buffer.from(signed), key).toString("base64url")}`;
}

// A name makes it a prepared statement of the session.
async function column(client, text, ...values) {
  const name = orders.prepare ? `s${text.length}_${values.length}` : undefined;
  const { rows } = await client.query({ name, text, values, rowMode: "array" });
  return rows.map((row) => row[0]);
}

async function transaction(client, body) {
  await client.query("BEGIN");
  try {
    await body();
    await client.query("COMMIT");
    return "00000";
  } catch (error) {
    await client.query("ROLLBACK");
    return error.code;
  }
}

const [seen, left, refused] = [[], [], []];
const clients = [new pg.Client({ host, port, database, user }), new pg.Client({ host, port, database, user })];
for (const client of clients) await client.connect();
for (let number = 0; number < 6; number++) {
  const client = clients[number % 2];
  const [tenant, other] = number % 2 ? ["acme", "globex"] : ["globex", "acme"];
  const used = token(tenant);
  const done = await transaction(client, async () => {
    const bound = await column(client, "SELECT agd.bind($1)", used);
    await column(client, "INSERT INTO plain VALUES ($1, $2, 'js')", tenant, 5000 + number);
    const rows = await column(client, "SELECT DISTINCT tenant FROM plain");
    seen.push([...bound, ...rows, ...(await column(client, "SELECT agd.current_principal()"))]);
  });
  if (done !== "00000") throw new Error(done);
  for (const after of clients) {
    left.push([...(await column(after, "SELECT agd.current_tenant()")), ...(await column(after, "SELECT tenant FROM plain"))]);
  }
  refused.push(await transaction(client, () => column(client, "SELECT agd.bind($1)", used)));
  refused.push(
    await transaction(client, async () => {
      await column(client, "SELECT agd.bind($1)", token(tenant));
      await column(client, "INSERT INTO plain VALUES ($1, $2, 'x')", other, 6000 + number);
    }),
  );
}
for (const client of clients) await client.end();
console.log(JSON.stringify({ seen, left, refused }));
