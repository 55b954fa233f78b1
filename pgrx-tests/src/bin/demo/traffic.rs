//! What a tenant's application does all day, and an exact account of the rows it wrote.

use crate::failure::{Failure, Result, expect_equal, server_message};
use postgres::{Client, Config, NoTls, Transaction};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Rows written and committed, by table and action; and what came to nothing.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// By table and INSERT, UPDATE or DELETE.
    pub rows: BTreeMap<(&'static str, &'static str), i64>,
    /// INSERTs of committed transactions that met ON CONFLICT.
    pub conflicts: i64,
    /// Rows written and rolled back, by ROLLBACK or ROLLBACK TO.
    pub rolled_back: i64,
    /// Transactions committed.
    pub transactions: i64,
}

impl Account {
    fn wrote(&mut self, table: &'static str, action: &'static str, rows: i64) {
        *self.rows.entry((table, action)).or_default() += rows;
    }

    /// Adds another connection's account.
    pub fn add(&mut self, other: &Self) {
        for ((table, action), rows) in &other.rows {
            self.wrote(table, action, *rows);
        }
        self.conflicts += other.conflicts;
        self.rolled_back += other.rolled_back;
        self.transactions += other.transactions;
    }

    /// All rows written.
    pub fn total(&self) -> i64 {
        self.rows.values().sum()
    }
}

/// The number of the first order of a connection's, counted from 0.
pub fn first_order(connection: i32) -> i32 {
    100_000 * (connection + 1) + 1
}

/// Works as one connection of a shop until told to stop.
pub fn work(config: &Config, connection: i32, stop: &AtomicBool) -> Result<Account> {
    let mut client = config.connect(NoTls).map_err(failed)?;
    let mut account = Account::default();
    let mut order = first_order(connection);
    while !stop.load(Ordering::Relaxed) {
        one_order(&mut client, order, &mut account)?;
        if order % 3 == 0 {
            let deleted = client.execute("DELETE FROM orders WHERE order_no = $1", &[&order]).map_err(failed)?;
            expect_equal("orders deleted", 1, deleted)?;
            account.wrote("orders", "DELETE", 1);
            account.wrote("order_lines", "DELETE", 3);
            account.transactions += 1;
        }
        order += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(account)
}

fn one_order(client: &mut Client, order: i32, account: &mut Account) -> Result<()> {
    // Placed with three lines; a fourth is thought better of.
    let mut transaction = client.transaction().map_err(failed)?;
    transaction.execute("SELECT agd.set_cause($1)", &[&format!("order {order} from the web shop")]).map_err(failed)?;
    write(&mut transaction, "INSERT INTO orders (order_no, customer) VALUES ($1, 'walk-in')", order, 1)?;
    write(
        &mut transaction,
        "INSERT INTO order_lines (order_no, line, item, quantity, price)
         VALUES ($1, 1, 'anvil', 1, 49.90), ($1, 2, 'rope', 20, 1.15), ($1, 3, 'magnet', 2, 12.00)",
        order,
        3,
    )?;
    let mut savepoint = transaction.savepoint("one_more").map_err(failed)?;
    write(
        &mut savepoint,
        "INSERT INTO order_lines (order_no, line, item, quantity, price) VALUES ($1, 4, 'rocket', 1, 999)",
        order,
        1,
    )?;
    savepoint.rollback().map_err(failed)?;
    transaction.commit().map_err(failed)?;
    account.wrote("orders", "INSERT", 1);
    account.wrote("order_lines", "INSERT", 3);
    account.rolled_back += 1;

    // The shop sends the order twice; the second one does nothing.
    let mut transaction = client.transaction().map_err(failed)?;
    write(
        &mut transaction,
        "INSERT INTO orders (order_no, customer) VALUES ($1, 'walk-in') ON CONFLICT DO NOTHING",
        order,
        0,
    )?;
    transaction.commit().map_err(failed)?;
    account.conflicts += 1;

    // One more of the first line, by an upsert.
    let mut transaction = client.transaction().map_err(failed)?;
    transaction
        .execute("SELECT agd.set_cause($1)", &[&format!("order {order}: one anvil is not enough")])
        .map_err(failed)?;
    write(
        &mut transaction,
        "INSERT INTO order_lines (order_no, line, item, quantity, price) VALUES ($1, 1, 'anvil', 1, 49.90)
         ON CONFLICT (tenant, order_no, line) DO UPDATE SET quantity = order_lines.quantity + EXCLUDED.quantity",
        order,
        1,
    )?;
    transaction.commit().map_err(failed)?;
    account.conflicts += 1;
    account.wrote("order_lines", "UPDATE", 1);

    // A discount, and paid.
    let mut transaction = client.transaction().map_err(failed)?;
    write(&mut transaction, "UPDATE order_lines SET price = round(price * 0.9, 2) WHERE order_no = $1", order, 3)?;
    write(&mut transaction, "UPDATE orders SET status = 'paid' WHERE order_no = $1", order, 1)?;
    transaction.commit().map_err(failed)?;
    account.wrote("order_lines", "UPDATE", 3);
    account.wrote("orders", "UPDATE", 1);

    // Cancelled, and then not.
    let mut transaction = client.transaction().map_err(failed)?;
    write(&mut transaction, "UPDATE orders SET status = 'cancelled' WHERE order_no = $1", order, 1)?;
    transaction.rollback().map_err(failed)?;
    account.rolled_back += 1;
    account.transactions += 4;
    Ok(())
}

fn write(transaction: &mut Transaction<'_>, sql: &str, order: i32, rows: u64) -> Result<()> {
    let written = transaction.execute(sql, &[&order]).map_err(failed)?;
    expect_equal(&format!("rows written by {sql}"), rows, written)
}

fn failed(error: postgres::Error) -> Failure {
    Failure::new("a tenant's statement to succeed", server_message(&error))
}
