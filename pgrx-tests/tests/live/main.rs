//! Tests of agd over real connections to real servers, a module for each promise.
//!
//! One program, so that it is linked once; `dev/test.py` runs each module in a process of its own, with a cluster of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod command_line;
#[path = "../../../crates/tsp/tests/openssl/mod.rs"]
mod openssl;
#[expect(dead_code, reason = "the tests of the command line use the rest of it")]
#[path = "../../../crates/cli/tests/cli/s3_server.rs"]
mod s3_server;

mod actors;
mod attack_bounds;
mod attack_ddl;
mod attack_denied;
mod attack_fleet;
mod attack_identity;
mod attack_install;
mod attack_laundering;
mod attack_publish;
mod attack_reports;
mod attack_roles;
mod attack_second;
mod attack_triggers;
mod attack_worker;
mod bulk;
mod ceiling;
mod clock;
mod concurrent;
mod crash;
mod ddl;
mod denied;
mod equivalence;
mod export;
mod fleet;
mod fleet_acts;
mod fleet_races;
mod fleet_story;
mod gate;
mod guard;
mod harness;
mod identity;
mod images;
mod incarnation;
mod install;
mod order;
mod own_tables;
mod proof;
mod redact;
mod replication;
mod restore;
mod roles;
mod s3;
mod stamp;
mod standby;
mod tamper;
mod types;
mod verify;
mod wall_binding;
mod wall_pooler;
mod wall_tables;
mod wall_token;
mod worker;
