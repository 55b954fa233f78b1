//! The HTML report in a real browser: what it shows, that it loads and runs nothing, and that no name in a store does either.
//!
//! The browser is `AGD_CHROMIUM`, else what dev/test.py unpacked, else a chromium on the PATH. Without one these tests fail.
//! `AGD_SCREENSHOTS`: a folder for pictures of the pages.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::*;
use agd_cli::html::Page;
use agd_cli::html::timeline::Timestamp;
use agd_cli::store::Reader;
use agd_core::dump::write_header;
use agd_core::{DumpedEvent, Image, LogRange, entry};

fn browser() -> PathBuf {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/chromium/start");
    let named = std::env::var_os("AGD_CHROMIUM").map(PathBuf::from);
    let on_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        let names = ["chromium-headless-shell", "chromium"];
        folders.iter().flat_map(|folder| names.map(|name| folder.join(name))).find(|program| program.is_file())
    };
    named
        .or_else(|| Some(unpacked).filter(|program| program.is_file()))
        .or_else(on_path)
        .expect("there is no Chromium: dev/test.py unpacks Debian's, or name one in AGD_CHROMIUM")
}

/// Runs the browser on a page. Nothing but this machine is to be reached.
fn open(page: &Path, arguments: &[&str]) -> Output {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser())
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"])
        .args(["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--hide-scrollbars", "--timeout=20000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(arguments)
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

/// The page's elements after the browser has read it, and what it said on its console.
fn dom(page: &Path) -> (String, Vec<String>) {
    let output = open(page, &["--dump-dom"]);
    let said = String::from_utf8_lossy(&output.stderr);
    let console = said.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    let dom = String::from_utf8(output.stdout).unwrap();
    assert!(dom.contains("</html>"), "no page: {said}");
    (dom, console)
}

fn picture(page: &Path, name: &str, arguments: &[&str]) {
    if let Some(folder) = std::env::var_os("AGD_SCREENSHOTS") {
        let file = Path::new(&folder).join(name);
        let screenshot = format!("--screenshot={}", file.display());
        open(page, &[&[&screenshot[..], "--window-size=1100,2300"], arguments].concat());
        assert!(std::fs::metadata(file).unwrap().len() > 20_000);
    }
}

fn agd(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_agd")).args(args).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A store with a history: a platform log and three tenants, anchored again and again.
fn sample() -> (tempfile::TempDir, FakeDatabase) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let mut database = FakeDatabase::new();
    for round in 0..30_u64 {
        database.write(None, 3 + round % 5);
        database.write(Some("acme"), 10 + (round * 37) % 90);
        if round % 3 == 0 {
            database.write(Some("globex"), 40);
        }
        if round > 20 {
            database.write(Some("initech"), 7);
        }
    }
    assert_eq!(publish(&store, &mut database).exit_code(), 0);
    std::fs::write(dir.path().join("policy.txt"), format!("log {}\nquorum none\n", key().verifier())).unwrap();
    (dir, database)
}

/// Dumps a log. Every 50th event has lost its images.
fn dump(database: &FakeDatabase, origin: &str, path: &Path) {
    let entries = &database.logs[origin].entries;
    let range = LogRange { origin: origin.to_owned(), first: 0, last: entries.len() as u64, images: true };
    let mut bytes = Vec::new();
    write_header(&[range], &mut bytes);
    for (index, entry_bytes) in entries.iter().enumerate() {
        let id = entry::parse(entry_bytes).unwrap().event_id;
        let erased = index % 50 == 49;
        let image = |text: String| if erased { Image::Erased } else { Image::Text(text.into()) };
        let event = DumpedEvent {
            origin: origin.into(),
            index: index as u64,
            entry: entry_bytes.into(),
            salt: (!erased).then_some([id.xact_id as u8; 16]),
            key: image(id.xact_id.to_string()),
            new: image("2".to_owned()),
            old: Image::None,
        };
        bytes.push(b'\n');
        event.encode_into(&mut bytes);
    }
    bytes.push(b'\n');
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_good_store_in_a_browser() {
    let (dir, database) = sample();
    let (store, policy, events, page) = (
        dir.path().join("store"),
        dir.path().join("policy.txt"),
        dir.path().join("events.jsonl"),
        dir.path().join("report.html"),
    );
    dump(&database, &tenant_origin("acme"), &events);
    let arguments =
        ["report", text(&store), "--policy", text(&policy), "--events", text(&events), "--out", text(&page)];
    let made = agd(&arguments);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    assert_eq!(agd(&arguments).status.code(), Some(2), "a report is never overwritten");
    let html = std::fs::read_to_string(&page).unwrap();
    for loads in ["<script", "<link", "<img", "<iframe", "src=", "url(", "@import", "@font-face", " style=", " on"] {
        let found = html.find(loads).map(|at| &html[at.saturating_sub(40)..at + 40]);
        assert!(
            found.is_none_or(|_| loads == " on" && !html.contains(" onload") && !html.contains(" onerror")),
            "{found:?}"
        );
    }
    let (dom, console) = dom(&page);
    assert!(console.is_empty(), "{console:?}");
    assert!(dom.contains("<strong>✓ All holds</strong>"), "{dom}");
    // The style sheet is the one that the page's own policy lets in: else the browser would have complained.
    assert!(dom.contains("Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-"), "{dom}");
    let logs = &dom[dom.find("id=\"logs\"").unwrap()..dom.find("id=\"timeline\"").unwrap()];
    assert_eq!(logs.matches("<tr>").count(), 1 + 4);
    assert_eq!(logs.matches("✓ holds").count(), 4);
    let drawn = &dom[dom.find("id=\"timeline\"").unwrap()..dom.find("id=\"events\"").unwrap()];
    assert_eq!(drawn.matches("<svg").count(), 4);
    let anchors: usize = database.logs.values().map(|log| log.anchors.len()).sum();
    assert_eq!(drawn.matches("<circle").count(), anchors);
    assert!(dom.contains("Erased images in"), "{dom}");
    assert!(!dom.contains("id=\"findings\""));
    picture(&page, "good.png", &[]);
    picture(&page, "good-dark.png", &["--blink-settings=preferredColorScheme=0"]);
    picture(&page, "good-narrow.png", &["--window-size=420,2300"]);
}

#[test]
fn what_is_false_stands_first_with_file_and_entry() {
    let (dir, database) = sample();
    let (store, page) = (dir.path().join("store"), dir.path().join("report.html"));
    let tile = format!("{}/tile/0/000", tenant_origin("acme"));
    let mut bytes = std::fs::read(store.join(&tile)).unwrap();
    bytes[32 * 7] ^= 1;
    overwrite(&store, &tile, &bytes);
    let events = dir.path().join("events.jsonl");
    dump(&database, &tenant_origin("globex"), &events);
    let dumped = std::fs::read_to_string(&events).unwrap();
    let changed = dumped.replacen("\"new\":\"2\"", "\"new\":\"3\"", 1).replacen("a cause", "another cause", 2);
    std::fs::write(&events, changed).unwrap();
    let policy = dir.path().join("policy.txt");
    let made =
        agd(&["report", text(&store), "--policy", text(&policy), "--events", text(&events), "--out", text(&page)]);
    assert_eq!(made.status.code(), Some(1), "{made:?}");
    let (dom, console) = dom(&page);
    assert!(console.is_empty(), "{console:?}");
    assert!(dom.contains("<strong>✗ Something is false</strong>"), "{dom}");
    let findings = &dom[dom.find("id=\"findings\"").unwrap()..dom.find("id=\"checked\"").unwrap()];
    assert!(findings.contains(&format!("{tile}</td><td class=\"n\">7</td><td class=\"n\">224</td>")), "{findings}");
    assert!(findings.contains("was changed: cause is not as in the log"), "{findings}");
    assert!(dom.contains("✗ 1 finding"), "{dom}");
    picture(&page, "false.png", &[]);
}

#[test]
fn timestamps_are_drawn_and_an_unsigned_store_is_not_called_good() {
    let (dir, _) = sample();
    let (store, file) = (dir.path().join("store"), dir.path().join("report.html"));
    let report = verify_with(&store, None);
    let log = &report.logs[0];
    let (first, last) = log.result.times.unwrap();
    let timestamps: Vec<Timestamp> = (1..=9)
        .map(|n| {
            let at = log.result.published.len() * n / 10;
            Timestamp {
                origin: PLATFORM.to_owned(),
                size: log.result.published[at],
                at: first + (last - first) * n as i64 / 10,
                by: "tsa.example <b>".to_owned(),
            }
        })
        .collect();
    let page = Page {
        reader: &Reader::open(&store).unwrap(),
        report: &report,
        policy: None,
        store: "a store",
        policy_file: None,
        tsa_ca_file: None,
        timestamps: &timestamps,
        made_at: START,
    };
    std::fs::write(&file, page.html()).unwrap();
    let (dom, console) = dom(&file);
    assert!(console.is_empty(), "{console:?}");
    assert!(dom.contains("<strong>– Not everything could be checked</strong>"));
    assert!(dom.contains("Who signed: there was no policy"));
    assert_eq!(dom.matches("class=\"stamp\"").count(), 9);
    assert!(dom.contains("by tsa.example &lt;b&gt;"));
    assert!(dom.contains("9 RFC 3161 timestamps on checkpoints hold"));
    picture(&file, "timestamps.png", &[]);
}

#[test]
fn hostile_names_do_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        "<script>document.title='pwned'</script><img src=\"http://127.0.0.1:{port}/x\" onerror=\"document.title='pwned'\">"
    );
    let dir = tempfile::tempdir().unwrap();

    // That a browser would do it, and that this test would see it.
    let control = dir.path().join("control.html");
    std::fs::write(&control, format!("<html><title>good</title><body>{script}</body></html>")).unwrap();
    let (shown, _) = dom(&control);
    assert!(shown.contains("<title>pwned</title>"), "{shown}");
    assert!(listener.accept().is_ok(), "the control page loads its picture");
    while listener.accept().is_ok() {}

    // Names in the store and the dump, and the names of both.
    let folder = dir.path().join("<b onclick=x>");
    let store = folder.join("store'\">");
    std::fs::create_dir_all(&store).unwrap();
    let mut database = FakeDatabase::new();
    database.write(None, 3);
    publish(&store, &mut database);
    let name = "<img src=x onerror=document.title='pwned'>";
    std::fs::write(store.join(PLATFORM).join("checkpoints").join(name), "x").unwrap();
    std::fs::create_dir_all(store.join(name)).unwrap();
    std::fs::write(store.join(name).join("checkpoint"), "x").unwrap();
    let events = folder.join("events<script>.jsonl");
    let mut bytes = Vec::new();
    let range = |origin: &str| LogRange { origin: origin.to_owned(), first: 0, last: 3, images: false };
    write_header(&[range(PLATFORM), range(&script)], &mut bytes);
    for (index, entry) in database.logs[PLATFORM].entries.iter().enumerate().take(3) {
        bytes.push(b'\n');
        let index = index as u64;
        let (key, new, old) = (Image::None, Image::None, Image::None);
        let origin = format!("{script}{index}").into();
        DumpedEvent { origin, index, entry: entry.into(), salt: None, key, new, old }.encode_into(&mut bytes);
    }
    bytes.push(b'\n');
    std::fs::write(&events, bytes).unwrap();
    let page = dir.path().join("report.html");
    let made = agd(&["report", text(&store), "--events", text(&events), "--out", text(&page)]);
    assert_eq!(made.status.code(), Some(1), "{made:?}");
    let (dom, console) = dom(&page);
    assert!(console.is_empty(), "{console:?}");
    assert!(dom.contains("<title>agd-1/app – agd evidence report</title>"), "{dom}");
    for element in ["<script", "<img", "<b "] {
        assert!(!dom.contains(element), "{element}: {dom}");
    }
    // They are there, as text.
    assert!(dom.matches("&lt;script&gt;document.title='pwned'&lt;/script&gt;").count() >= 4, "{dom}");
    assert!(dom.contains("&lt;img src=x onerror=document.title='pwned'&gt;"), "{dom}");
    assert!(dom.contains("&lt;b onclick=x&gt;"), "{dom}");
    assert!(listener.accept().is_err(), "nothing was loaded");
    picture(&page, "hostile.png", &[]);
}
