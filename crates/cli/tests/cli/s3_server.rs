//! A real S3 server, started by the test that needs it and gone with it (dev/s3_server.py).

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

/// Where the server's program is: what dev/test.py says, else where dev/s3.py puts it.
fn program() -> Option<PathBuf> {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/s3/start");
    let told = std::env::var_os("AGD_S3_SERVER").map(PathBuf::from);
    told.or_else(|| usual.exists().then_some(usual))
}

pub struct S3Server {
    child: Child,
    input: RefCell<ChildStdin>,
    output: RefCell<BufReader<ChildStdout>>,
    port: u64,
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl S3Server {
    /// Starts one; `None` where there is none to be had, which is said.
    pub fn start() -> Option<Self> {
        let Some(program) = program() else {
            eprintln!("no S3 server here (dev/s3.py makes one ready): this test proves nothing");
            return None;
        };
        let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = RefCell::new(child.stdin.take().unwrap());
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let port = serde_json::from_str::<Value>(&line).unwrap()["port"].as_u64().unwrap();
        Some(Self { child, input, output: RefCell::new(output), port })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What the program needs in its environment to find it.
    pub fn environment(&self) -> Vec<(String, String)> {
        environment(&self.url(), "test", "test")
    }

    fn ask(&self, command: &Value) -> Value {
        writeln!(self.input.borrow_mut(), "{command}").unwrap();
        let mut line = String::new();
        self.output.borrow_mut().read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// A call of boto3's S3 client: what it gives, or the server's error code.
    pub fn call(&self, name: &str, arguments: Value) -> Result<Value, String> {
        let said = self.ask(&json!({ "s3": name, "with": arguments }));
        match said["error"].as_str() {
            Some(code) => Err(code.to_owned()),
            None => Ok(said["ok"].clone()),
        }
    }

    pub fn bucket(&self, name: &str) {
        let place = json!({ "LocationConstraint": "eu-central-1" });
        self.call("create_bucket", json!({ "Bucket": name, "CreateBucketConfiguration": place })).unwrap();
    }

    /// A bucket that locks every object for a day.
    pub fn locked_bucket(&self, name: &str, mode: &str) {
        let place = json!({ "LocationConstraint": "eu-central-1" });
        let bucket = json!({ "Bucket": name, "CreateBucketConfiguration": place, "ObjectLockEnabledForBucket": true });
        self.call("create_bucket", bucket).unwrap();
        let rule = json!({ "DefaultRetention": { "Mode": mode, "Days": 1 } });
        let configuration = json!({ "ObjectLockEnabled": "Enabled", "Rule": rule });
        let set = json!({ "Bucket": name, "ObjectLockConfiguration": configuration });
        self.call("put_object_lock_configuration", set).unwrap();
    }

    /// Every object's name with its newest bytes, in base64.
    pub fn objects(&self, bucket: &str) -> std::collections::BTreeMap<String, String> {
        let mut found = std::collections::BTreeMap::new();
        let mut after = String::new();
        loop {
            let page = self.call("list_objects_v2", json!({ "Bucket": bucket, "StartAfter": after })).unwrap();
            for object in page["Contents"].as_array().into_iter().flatten() {
                after = object["Key"].as_str().unwrap().to_owned();
                let object = self.call("get_object", json!({ "Bucket": bucket, "Key": after })).unwrap();
                found.insert(after.clone(), object["Body"].as_str().unwrap().to_owned());
            }
            if page["IsTruncated"] != true {
                return found;
            }
        }
    }

    /// All versions of an object, the newest first.
    pub fn versions(&self, bucket: &str, key: &str) -> Vec<String> {
        let page = self.call("list_object_versions", json!({ "Bucket": bucket, "Prefix": key })).unwrap();
        let versions = page["Versions"].as_array().into_iter().flatten();
        versions.filter(|v| v["Key"] == key).map(|v| v["VersionId"].as_str().unwrap().to_owned()).collect()
    }

    /// After `spare` requests of these methods, `count` (or all) fail with this status; `done`: after they were done.
    pub fn fault(&self, methods: &[&str], spare: u64, count: Option<u64>, status: u16, done: bool) {
        let fault = json!({ "methods": methods, "spare": spare, "count": count, "status": status, "done": done });
        self.ask(&json!({ "fault": fault }));
    }

    /// From now on these headers are not looked at.
    pub fn deaf(&self, headers: &[&str]) {
        self.ask(&json!({ "deaf": headers }));
    }

    pub fn no_fault(&self) {
        self.ask(&json!({ "fault": null }));
    }

    /// The requests since this was asked last.
    pub fn requests(&self) -> Vec<String> {
        let said = self.ask(&json!({ "requests": true }));
        said["ok"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
    }

    /// From now on every request takes so many seconds more.
    pub fn pause(&self, seconds: f64) {
        self.ask(&json!({ "pause": seconds }));
    }

    /// The most requests that were under way at once since this was asked last.
    pub fn together(&self) -> u64 {
        self.ask(&json!({ "together": true }))["ok"].as_u64().unwrap()
    }

    /// From now on one user alone may do anything, and only what the policy says: its environment.
    pub fn only(&self, policy: &Value) -> Vec<(String, String)> {
        let said = self.ask(&json!({ "only": policy }));
        environment(&self.url(), said["ok"][0].as_str().unwrap(), said["ok"][1].as_str().unwrap())
    }
}

/// What the program needs in its environment to find a server.
pub fn environment(url: &str, key: &str, secret: &str) -> Vec<(String, String)> {
    let pairs = [
        ("AWS_ENDPOINT_URL", url),
        ("AWS_ACCESS_KEY_ID", key),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}
