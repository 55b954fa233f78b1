//! A wall clock that steps back: the order of the log is the order of the commits all the same.

use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified, reconcile};
use agd_live_tests::{Cluster, Stop, eventually};
use postgres::Client;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Loaded into the server's processes before libc: the wall clock is off by what a file says. Other clocks are as they are.
const SHIM: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
struct timeval_ { long tv_sec; long tv_usec; };
static long offset(void) {
  char text[32] = {0};
  const char *path = getenv("AGD_CLOCK_OFFSET");
  int file = path ? open(path, O_RDONLY) : -1;
  if (file < 0) return 0;
  long length = read(file, text, sizeof text - 1);
  close(file);
  return length > 0 ? atol(text) : 0;
}
int clock_gettime(clockid_t clock, struct timespec *time) {
  long failed = syscall(SYS_clock_gettime, clock, time);
  if (!failed && clock == CLOCK_REALTIME) time->tv_sec += offset();
  return (int) failed;
}
int gettimeofday(struct timeval_ *time, void *zone) {
  struct timespec now;
  (void) zone;
  if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
  time->tv_sec = now.tv_sec;
  time->tv_usec = now.tv_nsec / 1000;
  return 0;
}
"#;

/// A cluster whose wall clock can be set.
struct Clock {
    cluster: Cluster,
    offset: PathBuf,
    folder: PathBuf,
}

impl Clock {
    fn start() -> Self {
        // The folder is readable by the server's user, whoever that is.
        let folder = std::env::temp_dir().join(format!("agd-clock-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (source, library, offset) = (folder.join("clock.c"), folder.join("clock.so"), folder.join("offset"));
        fs::write(&source, SHIM).unwrap();
        fs::write(&offset, "0").unwrap();
        // The C compiler is there: Rust programs are linked with it.
        let compiled =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).status().unwrap();
        assert!(compiled.success());
        for path in [&folder, &library, &offset] {
            open_to_all(path);
        }
        let cluster = Cluster::builder()
            .setting("agd.anchor_max_age", "1s")
            .environment("LD_PRELOAD", &library)
            .environment("AGD_CLOCK_OFFSET", &offset)
            .start()
            .unwrap();
        Self { cluster, offset, folder }
    }

    fn set(&self, seconds: i64) {
        fs::write(&self.offset, seconds.to_string()).unwrap();
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn write(client: &mut Client, word: &str) {
    client.execute("UPDATE t SET v = $1 WHERE id = 1", &[&word]).unwrap();
}

/// The words in the order of `by`.
fn words(client: &mut Client, by: &str) -> Vec<String> {
    let sql = format!(
        "SELECT new->>'v' FROM agd.events WHERE relation NOT LIKE 'agd.%' AND action IN ('INSERT', 'UPDATE') ORDER BY {by}"
    );
    client.query(&sql, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

/// Trap: the system clock steps back an hour while the server runs; and it restarts, after a stop and after a crash, with
/// a clock behind. Commit stamps only grow, a row's events stand in the log in their real order, and tails are still
/// anchored by age.
#[test]
fn the_clock_steps_back_and_the_order_stays() {
    let clock = Clock::start();
    let database = clock.cluster.agd_database("clock").unwrap();
    let mut client = database.connect().unwrap();
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT agd.guard('t'); INSERT INTO t VALUES (1, 'first')",
        )
        .unwrap();
    anchor(&mut client);
    let before: f64 = client.query_one("SELECT extract(epoch FROM clock_timestamp())::float8", &[]).unwrap().get(0);
    write(&mut client, "not yet integrated");
    clock.set(-3600);
    let after: f64 = client.query_one("SELECT extract(epoch FROM clock_timestamp())::float8", &[]).unwrap().get(0);
    assert!(after < before - 3000.0, "the clock did not step back");
    write(&mut client, "an hour earlier");
    let tail = "SELECT count(leaf_index) = count(*) AND max(leaf_index) + 1 = (SELECT max(tree_size) FROM agd.anchors) FROM agd.events";
    eventually("the tail is anchored by its age", Duration::from_secs(30), || {
        client.query_one(tail, &[]).unwrap().get(0)
    });
    write(&mut client, "before the stop");
    drop(client);
    clock.set(-7200);
    clock.cluster.restart().unwrap();
    let mut client = database.connect().unwrap();
    write(&mut client, "after the stop");
    write(&mut client, "before the crash");
    clock.set(-10800);
    clock.cluster.stop(Stop::Immediate).unwrap();
    clock.cluster.start().unwrap();
    let mut client = database.connect().unwrap();
    write(&mut client, "after the crash");
    clock.set(3600);
    write(&mut client, "an hour ahead");
    clock.set(0);
    write(&mut client, "right again");
    anchor(&mut client);
    let real = [
        "first",
        "not yet integrated",
        "an hour earlier",
        "before the stop",
        "after the stop",
        "before the crash",
        "after the crash",
        "an hour ahead",
        "right again",
    ];
    assert_eq!(words(&mut client, "committed_at"), real);
    assert_eq!(words(&mut client, "leaf_index"), real);
    // The events' own times are what the clock said.
    let backwards: bool = client
        .query_one("SELECT bool_or(at < before) FROM (SELECT at, lag(at) OVER (ORDER BY committed_at) AS before FROM agd.events) e", &[])
        .unwrap()
        .get(0);
    assert!(backwards);
    reconcile(&mut client, "t", &["id"]);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
}
