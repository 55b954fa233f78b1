//! Tests of the program `agd`, run as a person runs it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod admission;
mod chains;
mod common;
#[path = "../../../tsp/tests/openssl/mod.rs"]
mod openssl;
mod s3_server;

mod events;
mod evidence;
mod fleets;
mod html;
mod https;
mod independent;
mod keys;
mod publish;
mod s3;
mod stamp;
mod token;
mod usage;
mod verify;
mod witness;
