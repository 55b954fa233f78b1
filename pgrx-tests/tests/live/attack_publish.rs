//! What somebody can do to a published record with the publisher's key and store and a database of his own: nothing, without
//! saying so. Real databases, the real program; the variants are in `crates/cli/tests/cli/admission.rs`.

use crate::command_line::{self, answer, text};
use agd_live_tests::publishing;
use agd_live_tests::record::{anchor, expect_verified};
use agd_live_tests::{Cluster, TestDb};
use postgres::Client;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let cluster = Cluster::builder().setting("agd.anchor_max_age", "1h").start().unwrap();
        drop(cluster.agd_database("roles").unwrap());
        cluster.create_role("publish_pub", "IN ROLE agd_publisher").unwrap();
        cluster
    })
}

/// Publishes as an ordinary member of agd_publisher.
fn publish(database: &str, store: &Path, key: &Path, options: &[&str]) -> (Option<i32>, String) {
    let url = format!("host={} user=publish_pub dbname={database}", cluster().socket_dir().display());
    let publish = ["publish", "--once", "--database", &url, "--store", text(store), "--key", text(key)];
    answer(command_line::agd().args(publish).args(options))
}

/// A database with a record, a folder with a store and a key, published.
struct Scene {
    database: TestDb<'static>,
    client: Client,
    folder: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Scene {
    fn new(stem: &str) -> Self {
        let database = cluster().agd_database(stem).unwrap();
        let mut client = database.connect().unwrap();
        client.batch_execute("CREATE TABLE t (id serial PRIMARY KEY, v text); SELECT agd.guard('t')").unwrap();
        publishing::register(&mut client);
        let folder = std::env::temp_dir().join(format!("agd-publish-{}-{stem}", std::process::id()));
        std::fs::create_dir_all(folder.join("store")).unwrap();
        publishing::key_file(&publishing::log_name(&mut client), &folder.join("log.key"));
        let mut scene = Self { database, client, folder };
        scene.write(300);
        scene.expect_published();
        scene
    }

    fn write(&mut self, rows: i32) {
        write(&mut self.client, rows);
    }

    fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    fn key(&self) -> PathBuf {
        self.folder.join("log.key")
    }

    #[track_caller]
    fn expect_published(&self) {
        let (code, said) = publish(self.database.name(), &self.store(), &self.key(), &[]);
        assert_eq!(code, Some(0), "{said}");
    }

    /// Publishing a database is refused with these words; store and state are as they were, and the original goes on.
    #[track_caller]
    fn expect_refused(&mut self, database: &str, key: &Path, words: &str) {
        let before = files(&self.folder);
        for _ in 0..2 {
            let (code, said) = publish(database, &self.store(), key, &[]);
            assert!(code == Some(1) && said.contains(words) && said.contains("othing was signed"), "{said}");
            assert_eq!(files(&self.folder), before);
        }
        self.write(1);
        self.expect_published();
        expect_verified(&mut self.client);
    }
}

fn write(client: &mut Client, rows: i32) {
    client.execute("INSERT INTO t (v) SELECT 'x' FROM generate_series(1, $1)", &[&rows]).unwrap();
    anchor(client);
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for item in std::fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        match path.symlink_metadata().unwrap().is_dir() {
            true => found.extend(files(&path)),
            false => drop(found.insert(path.clone(), std::fs::read(path).unwrap())),
        }
    }
    found
}

#[test]
fn a_restored_copy_cannot_close_the_original() {
    let mut scene = Scene::new("original");
    let name = format!("{}_copy", scene.database.name());
    let dump = scene.folder.join("dump");
    std::fs::create_dir(&dump).unwrap();
    let file = dump.join("file");
    cluster().dump(&["-Fc", "-f", text(&file), scene.database.name()]).unwrap();
    cluster().superuser().unwrap().batch_execute(&format!("CREATE DATABASE \"{name}\"")).unwrap();
    cluster().restore(&["-d", &name, text(&file)]).unwrap();
    std::fs::remove_dir_all(&dump).unwrap();
    // Before it is resumed, and after, and when it has gone on; with the key's state, and without.
    let bare = tempdir("bare");
    let bare_key = bare.join("log.key");
    std::fs::copy(scene.key(), &bare_key).unwrap();
    for key in [scene.key(), bare_key.clone()] {
        scene.expect_refused(&name, &key, "this database is a copy");
    }
    let mut copy = cluster().client("postgres", &name).unwrap();
    copy.batch_execute("SELECT agd.resume()").unwrap();
    for rows in [0, 600] {
        write(&mut copy, rows);
        for key in [scene.key(), bare_key.clone()] {
            scene.expect_refused(&name, &key, "--moved-here");
        }
    }
    // Nor a file copy of it.
    let template = format!("{}_template", scene.database.name());
    drop(std::mem::replace(&mut copy, cluster().superuser().unwrap()));
    copy.batch_execute(&format!("CREATE DATABASE \"{template}\" TEMPLATE \"{name}\"")).unwrap();
    scene.expect_refused(&template, &scene.key(), "this database is a copy");
    // The copy itself was not closed by any of this: it may go on, under a key and in a store of its own.
    let mut copy = cluster().client("postgres", &name).unwrap();
    write(&mut copy, 1);
    drop(copy);
    for name in [name, template] {
        cluster().superuser().unwrap().batch_execute(&format!("DROP DATABASE \"{name}\"")).unwrap();
    }
    std::fs::remove_dir_all(bare).unwrap();
}

fn tempdir(stem: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("agd-publish-{}-{stem}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn a_second_database_of_the_same_name_is_refused() {
    let mut scene = Scene::new("first");
    let log_name = publishing::log_name(&mut scene.client);
    let database = cluster().database("second").unwrap();
    let mut other = database.connect().unwrap();
    other.batch_execute(&format!("SET agd.log_name = '{log_name}'; CREATE EXTENSION agd")).unwrap();
    other.batch_execute("CREATE TABLE t (id serial PRIMARY KEY, v text); SELECT agd.guard('t')").unwrap();
    publishing::register(&mut other);
    write(&mut other, 700);
    scene.expect_refused(database.name(), &scene.key(), "--moved-here");
    // In a store of its own, too.
    let folder = tempdir("own-store");
    let (code, said) = publish(database.name(), &folder, &scene.key(), &[]);
    assert!(code == Some(1) && said.contains("--moved-here"), "{said}");
    assert!(files(&folder).keys().all(|path| path.to_string_lossy().contains(".agd_publish")));
    std::fs::remove_dir_all(folder).unwrap();
    write(&mut other, 1);
}

#[test]
fn an_emptied_store_is_not_filled_anew_by_itself() {
    let mut scene = Scene::new("emptied");
    let kept = scene.folder.join("kept");
    std::fs::rename(scene.store(), &kept).unwrap();
    std::fs::create_dir(scene.store()).unwrap();
    scene.write(10);
    for state in [true, false] {
        if !state {
            std::fs::remove_file(scene.folder.join("log.key.state")).unwrap();
        }
        let (code, said) = publish(scene.database.name(), &scene.store(), &scene.key(), &[]);
        assert!(code == Some(1) && said.contains("--new-store"), "{said}");
        assert!(files(&scene.store()).keys().all(|path| path.to_string_lossy().contains(".agd_publish")));
    }
    std::fs::remove_dir_all(scene.store()).unwrap();
    std::fs::rename(&kept, scene.store()).unwrap();
    scene.expect_published();
    // Deliberately, and once.
    std::fs::rename(scene.store(), &kept).unwrap();
    std::fs::create_dir(scene.store()).unwrap();
    let (code, said) = publish(scene.database.name(), &scene.store(), &scene.key(), &["--new-store"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = publish(scene.database.name(), &scene.store(), &scene.key(), &["--new-store"]);
    assert!(code == Some(2) && said.contains("leave the option out"), "{said}");
    scene.write(10);
    scene.expect_published();
}

#[test]
fn a_link_in_a_store_is_not_followed() {
    let mut scene = Scene::new("linked");
    let origin: String = scene.client.query_one("SELECT origin FROM agd.log WHERE tenant IS NULL", &[]).unwrap().get(0);
    let outside = tempdir("outside");
    for part in ["tile", "tile/entries", "checkpoints"] {
        let folder = scene.store().join(&origin).join(part);
        let aside = outside.join(part.replace('/', "-"));
        std::fs::rename(&folder, &aside).unwrap();
        std::os::unix::fs::symlink(&aside, &folder).unwrap();
        scene.write(300);
        let before = files(&outside);
        let (code, said) = publish(scene.database.name(), &scene.store(), &scene.key(), &[]);
        assert!(code == Some(1) && said.contains("is not a regular file"), "{part}: {said}");
        let (code, said) = answer(command_line::agd().args(["verify", text(&scene.store())]));
        assert_ne!(code, Some(0), "{part}: {said}");
        assert_eq!(files(&outside), before);
        std::fs::remove_file(&folder).unwrap();
        std::fs::rename(&aside, &folder).unwrap();
        scene.expect_published();
    }
    std::fs::remove_dir_all(outside).unwrap();
}
