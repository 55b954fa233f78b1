//! Step 3: each tenant gets a fleet of agents: minted, signed, countersigned, sealed, or cancelled because nobody came.

use crate::failure::{Result, expect, expect_equal};
use crate::scene::{LOG_NAME, Scene, Session, column, first};
use agd_core::fleet::verify::verify;
use agd_core::fleet::{Agent, Evidence, Place, Signed, Signer};
use ed25519_dalek::{Signer as _, SigningKey};
use std::time::Duration;

/// How long the fleet that nobody countersigns has.
const SHORT: Duration = Duration::from_secs(2);

/// Two people with a key each. The keys never enter the database.
struct People {
    loom: SigningKey,
    river: SigningKey,
}

/// Step 3.
pub fn fleets(scene: &Scene<'_>) -> Result<()> {
    let terminal = scene.terminal;
    let people = People { loom: SigningKey::from_bytes(&[0x4c; 32]), river: SigningKey::from_bytes(&[0x52; 32]) };
    let mut session = scene.session("postgres")?;
    terminal.say(
        "A fleet is a tenant's own harness: coordinator, writer, gate-keeper and engineer, with that tenant's context. Loom \
         signs each, River countersigns. PostgreSQL knows their public keys and verifies.",
    );
    for (name, duty, key) in [("Loom", "coordinator", &people.loom), ("River", "countersigner", &people.river)] {
        let public = hex(key.verifying_key().as_bytes());
        session.run(&format!("SELECT agd.register_signer('{name}', '{duty}', '\\x{public}');"))?;
    }

    terminal.say(
        "One call mints a fleet. Its id is made of tenant, template and cause; the same call again changes nothing.",
    );
    let acme = mint(scene, &mut session, "acme", "onboarding of acme, contract 4711", "")?;
    let again = mint(scene, &mut session, "acme", "onboarding of acme, contract 4711", "")?;
    expect_equal("the id that the second mint returns", &acme, &again)?;
    let globex = mint(scene, &mut session, "globex", "onboarding of globex, contract 4712", "")?;
    let window = format!(", countersign_window => '{} s'", SHORT.as_secs());
    let late = mint(scene, &mut session, "globex", "a trial that nobody looks after", &window)?;

    terminal.say("Loom signs the exact bytes of each fleet's statement, which bind database, tenant, cause, generation, window and what \
         the agents are told.");
    let statement: Vec<u8> = session.value(&format!("SELECT agd.fleet_statement('{acme}')"))?;
    terminal.answer(&String::from_utf8_lossy(&statement));
    for fleet in [&acme, &globex, &late] {
        let statement: Vec<u8> = session.value(&format!("SELECT agd.fleet_statement('{fleet}')"))?;
        let signature = hex(&people.loom.sign(&statement).to_bytes());
        session.run(&format!("SELECT agd.sign_fleet('{fleet}', 'Loom', '\\x{signature}');"))?;
    }
    let batch = format!("'{{{acme},{globex}}}'");
    let wrong = hex(&people.loom.sign(&statement).to_bytes());
    session.refused(&format!("SELECT * FROM agd.countersign_fleets({batch}, 'Loom', '\\x{wrong}');"), "AG004")?;
    terminal.say("River countersigns two of them with one signature, in time; to the third, nobody comes.");
    let statement: Vec<u8> = session.value(&format!("SELECT agd.batch_statement({batch})"))?;
    let signature = hex(&people.river.sign(&statement).to_bytes());
    session.run(&format!("SELECT * FROM agd.countersign_fleets({batch}, 'River', '\\x{signature}');"))?;
    session.pause();
    session.run(&format!("SELECT agd.seal_tenant_fleet('{globex}', 'contract 4712 has ended');"))?;
    session.wait_for(
        "the window to pass",
        SHORT + Duration::from_secs(10),
        &format!("SELECT state = 'cancelled' FROM agd.fleets WHERE fleet_id = '{late}'"),
    )?;
    session.refused(&format!("SELECT agd.seal_tenant_fleet('{late}', 'too late for anything');"), "55000")?;
    show(scene, &mut session, &[(&acme, "active"), (&globex, "sealed"), (&late, "cancelled")])?;
    terminal.say("A tenant sees and ends its own fleets. Of the others it learns nothing.");
    let mut tenant = scene.session("globex_app")?;
    tenant.refused(&format!("SELECT agd.seal_tenant_fleet('{acme}', 'out of spite');"), "42501")?;
    let own: i64 = tenant.value("SELECT count(*) FROM agd.fleets")?;
    expect_equal("fleets that globex sees", 2, own)?;

    for fleet in [&acme, &globex, &late] {
        let evidence = evidence(&mut session, fleet)?;
        expect_equal("the database that the fleet was minted in", LOG_NAME, &evidence.origin)?;
        for check in verify(&evidence) {
            expect(
                &format!("the check {} of fleet {fleet} holds outside of the database", check.name),
                check.ok,
                check.detail,
            )?;
        }
    }
    terminal.say(
        "Taken out of the database and recomputed by agd-core from causes and public keys alone: every id follows from its \
         cause, and every signature stands under its own fleet's statement.",
    );
    // The sweeper writes down what the clock has decided; the record is complete before the load begins.
    session.quiet("SELECT count(*) FROM agd.anchor()")?;
    session.wait_for(
        "the worker to cancel what has expired",
        Duration::from_secs(30),
        "SELECT NOT EXISTS (SELECT FROM agd.fleet_pending_cancel WHERE overdue)",
    )
}

fn mint(scene: &Scene<'_>, session: &mut Session<'_>, tenant: &str, cause: &str, window: &str) -> Result<String> {
    let rows = session.query(&format!("SELECT agd.mint_tenant_fleet('{tenant}', '{cause}'{window});"))?;
    let fleet: String = column(first(&rows)?, 0)?;
    scene.terminal.answer(&fleet);
    Ok(fleet)
}

fn show(scene: &Scene<'_>, session: &mut Session<'_>, expected: &[(&str, &str)]) -> Result<()> {
    let rows = session.query(
        "SELECT fleet_id, tenant, state, coordinator, countersigner, reason FROM agd.fleets ORDER BY minted_at;",
    )?;
    let mut table = Vec::new();
    for (row, (fleet, state)) in rows.iter().zip(expected) {
        let cells: Vec<String> = (0..6)
            .map(|number| Ok(column::<Option<String>>(row, number)?.unwrap_or_default()))
            .collect::<Result<_>>()?;
        expect_equal("a fleet and its state", format!("{fleet} {state}"), format!("{} {}", cells[0], cells[2]))?;
        table.push(cells);
    }
    expect_equal("fleets", expected.len(), rows.len())?;
    scene.terminal.table(&["fleet", "tenant", "state", "coordinator", "countersigner", "reason"], &table);
    Ok(())
}

/// All that proves a fleet, as plain values.
fn evidence(session: &mut Session<'_>, fleet: &str) -> Result<Evidence> {
    let micros = |column: &str| format!("(extract(epoch FROM {column}) * 1000000)::bigint");
    let rows = session.rows(
        &format!(
            "SELECT fleet_id, digest, tenant, template, template_version, cause, generation, origin, state, {}, {}, context_digest
               FROM agd.fleets WHERE fleet_id = $1",
            micros("minted_at"),
            micros("countersign_deadline")
        ),
        &[&fleet],
    )?;
    let row = first(&rows)?;
    let unsigned = |number: i32| number.unsigned_abs();
    let mut evidence = Evidence {
        fleet_id: column(row, 0)?,
        digest: column(row, 1)?,
        tenant: column(row, 2)?,
        template: (column(row, 3)?, unsigned(column(row, 4)?)),
        cause: column(row, 5)?,
        generation: unsigned(column(row, 6)?),
        origin: column(row, 7)?,
        state: column(row, 8)?,
        minted_at: column(row, 9)?,
        deadline: column(row, 10)?,
        agents: Vec::new(),
        context_digest: column(row, 11)?,
        coordinator: None,
        countersigner: None,
    };
    let rows = session
        .rows("SELECT role, goals::text, memory_scope::text FROM agd.fleet_agents WHERE fleet_id = $1", &[&fleet])?;
    for row in &rows {
        evidence.agents.push(Agent { role: column(row, 0)?, goals: column(row, 1)?, memory_scope: column(row, 2)? });
    }
    let rows = session.rows(
        &format!(
            "SELECT s.signer, s.duty, s.public_key, {}, g.signature, {}, g.batch_size, g.batch_index, g.batch_path
               FROM agd.fleet_signature g JOIN agd.signer s USING (signer) WHERE g.fleet_id = $1",
            micros("s.registered_at"),
            micros("g.signed_at")
        ),
        &[&fleet],
    )?;
    for row in &rows {
        let signer = Signer {
            name: column(row, 0)?,
            duty: column(row, 1)?,
            key: column(row, 2)?,
            registered_at: column(row, 3)?,
            revoked_at: None,
        };
        let signed = Signed { signer: Some(signer), signature: column(row, 4)?, at: column(row, 5)? };
        match column::<Option<i64>>(row, 6)? {
            None => evidence.coordinator = Some(signed),
            Some(size) => {
                let path: Vec<u8> = column(row, 8)?;
                let place = Place {
                    size: size.cast_unsigned(),
                    index: column::<i64>(row, 7)?.cast_unsigned(),
                    path: path.as_chunks::<32>().0.to_vec(),
                };
                evidence.countersigner = Some((signed, place));
            }
        }
    }
    Ok(evidence)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
