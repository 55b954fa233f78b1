//! A timestamp authority made with the `openssl` program: keys, certificates and replies that are not ours.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod server;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Runs openssl in a folder; where it is missing the test fails.
pub fn openssl(folder: &Path, args: &[&str]) -> Vec<u8> {
    let (good, out, err) = try_openssl(folder, args);
    assert!(good, "openssl {args:?}: {err}");
    out
}

/// Runs openssl in a folder. Returns whether it ended well, what it printed, and what it complained about.
pub fn try_openssl(folder: &Path, args: &[&str]) -> (bool, Vec<u8>, String) {
    let output = Command::new("openssl").args(args).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("the openssl program is needed (Debian: openssl): {error}"));
    (output.status.success(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What kind of keys a TSA and its CAs have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    Rsa,
    P256,
    P384,
}

/// How a TSA is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub keys: Keys,
    /// The hash of its signatures.
    pub digest: &'static str,
    /// The hash that binds its certificate; sha1 gives the older attribute.
    pub binding: &'static str,
    /// An intermediate CA between the pinned one and the TSA.
    pub intermediate: bool,
}

impl Default for Kind {
    fn default() -> Self {
        Self { keys: Keys::P256, digest: "sha256", binding: "sha256", intermediate: true }
    }
}

pub const POLICY: &str = "1.2.3.4.1";
pub const OTHER_POLICY: &str = "1.2.3.4.5";

/// The extensions of a good TSA's certificate.
pub const GOOD: &str = "basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\n\
    extendedKeyUsage=critical,timeStamping\nsubjectKeyIdentifier=hash\n";

/// A timestamp authority with its files in a folder.
#[derive(Debug)]
pub struct Tsa {
    pub folder: PathBuf,
    kind: Kind,
    busy: Mutex<u32>,
}

impl Tsa {
    /// Makes `root.pem`, perhaps `between.pem`, `tsa.pem` and the keys, in a new folder.
    pub fn new(folder: &Path, kind: Kind) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let tsa = Self { folder: folder.to_owned(), kind, busy: Mutex::new(0) };
        for (name, subject) in [("root", "/O=Test/CN=Root"), ("between", "/O=Test/CN=Between")] {
            tsa.key(name);
            if name == "root" {
                let (key, out) = (format!("{name}.key"), format!("{name}.pem"));
                openssl(
                    folder,
                    &[
                        "req",
                        "-x509",
                        "-new",
                        "-key",
                        &key,
                        "-out",
                        &out,
                        "-subj",
                        subject,
                        "-days",
                        "30",
                        "-addext",
                        "basicConstraints=critical,CA:TRUE",
                        "-addext",
                        "keyUsage=critical,keyCertSign,cRLSign",
                    ],
                );
            } else if kind.intermediate {
                let ca = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n";
                tsa.certificate(name, subject, "root", ca, "30");
            }
        }
        tsa.key("tsa");
        tsa.certificate("tsa", "/O=Test/CN=TSA", tsa.issuer(), GOOD, "30");
        if kind.intermediate {
            std::fs::copy(folder.join("between.pem"), folder.join("chain.pem")).unwrap();
        } else {
            std::fs::copy(folder.join("root.pem"), folder.join("chain.pem")).unwrap();
        }
        std::fs::write(folder.join("serial"), "01\n").unwrap();
        let Kind { digest, binding, .. } = kind;
        std::fs::write(
            folder.join("tsa.cnf"),
            format!(
                "[tsa]\ndefault_tsa = t\n[t]\nserial = serial\ncrypto_device = builtin\nsigner_cert = tsa.pem\n\
                 certs = chain.pem\nsigner_key = tsa.key\nsigner_digest = {digest}\ndefault_policy = {POLICY}\n\
                 other_policies = {OTHER_POLICY}\ndigests = sha256, sha512\naccuracy = secs:1, millisecs:500\n\
                 ordering = yes\ntsa_name = yes\ness_cert_id_chain = no\ness_cert_id_alg = {binding}\n"
            ),
        )
        .unwrap();
        tsa
    }

    fn issuer(&self) -> &'static str {
        if self.kind.intermediate { "between" } else { "root" }
    }

    /// Makes `<name>.key`.
    pub fn key(&self, name: &str) {
        let out = format!("{name}.key");
        let kind: &[&str] = match self.kind.keys {
            Keys::Rsa => &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            Keys::P256 => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Keys::P384 => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
        };
        openssl(&self.folder, &[&["genpkey", "-out", &out], kind].concat());
    }

    /// A request for a certificate for `<name>.key`, and a file with its extensions-to-be: their names.
    fn request(&self, name: &str, subject: &str, extensions: &str) -> (String, String) {
        let file = |ending: &str| format!("{name}.{ending}");
        let (request, extension_file, key) = (file("csr"), file("ext"), file("key"));
        std::fs::write(self.folder.join(&extension_file), extensions).unwrap();
        openssl(&self.folder, &["req", "-new", "-key", &key, "-subj", subject, "-out", &request]);
        (request, extension_file)
    }

    /// Makes `<name>.pem` for `<name>.key`, signed by `<issuer>`.
    pub fn certificate(&self, name: &str, subject: &str, issuer: &str, extensions: &str, days: &str) {
        let (request, extension_file) = self.request(name, subject, extensions);
        let (out, ca, ca_key) = (format!("{name}.pem"), format!("{issuer}.pem"), format!("{issuer}.key"));
        openssl(
            &self.folder,
            &[
                "x509",
                "-req",
                "-in",
                &request,
                "-CA",
                &ca,
                "-CAkey",
                &ca_key,
                "-CAcreateserial",
                "-out",
                &out,
                "-days",
                days,
                "-extfile",
                &extension_file,
            ],
        );
    }

    /// Makes `<name>.pem` for `<name>.key`, valid from one time to another, like 20190101000000Z: also in the past.
    /// Issued by itself, it is the root.
    pub fn certificate_for_period(
        &self,
        name: &str,
        subject: &str,
        issuer: &str,
        extensions: &str,
        valid: (&str, &str),
    ) {
        let (request, extension_file) = self.request(name, subject, extensions);
        let (out, ca, ca_key) = (format!("{name}.pem"), format!("{issuer}.pem"), format!("{issuer}.key"));
        let config = "[ca]\ndefault_ca = c\n[c]\ndatabase = issued\nrand_serial = yes\nnew_certs_dir = .\ndefault_md = sha256\n\
                      policy = p\nunique_subject = no\nx509_extensions = none\n[p]\nO = supplied\nCN = supplied\n[none]\n";
        std::fs::write(self.folder.join("ca.cnf"), config).unwrap();
        std::fs::write(self.folder.join("issued"), "").unwrap();
        let args = [
            "ca",
            "-config",
            "ca.cnf",
            "-batch",
            "-notext",
            "-in",
            &request,
            "-out",
            &out,
            "-extfile",
            &extension_file,
        ];
        let valid = ["-startdate", valid.0, "-enddate", valid.1];
        let by: &[&str] = if name == issuer { &["-selfsign"] } else { &["-cert", &ca] };
        openssl(&self.folder, &[&args[..], &valid, &["-keyfile", &ca_key], by].concat());
    }

    /// The PEM file of the root.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root.pem")
    }

    /// The root's PEM.
    pub fn pem(&self) -> Vec<u8> {
        std::fs::read(self.root()).unwrap()
    }

    /// What `openssl ts -reply` answers.
    pub fn reply(&self, query: &[u8]) -> Vec<u8> {
        let mut busy = self.busy.lock().unwrap();
        *busy += 1;
        std::fs::write(self.folder.join("query.tsq"), query).unwrap();
        let args =
            ["ts", "-reply", "-config", "tsa.cnf", "-section", "t", "-queryfile", "query.tsq", "-out", "reply.tsr"];
        openssl(&self.folder, &args);
        std::fs::read(self.folder.join("reply.tsr")).unwrap()
    }

    /// How many replies were made.
    pub fn replies(&self) -> u32 {
        *self.busy.lock().unwrap()
    }

    /// Whether `openssl ts -verify` accepts a reply over some bytes; what it complained about if not.
    pub fn openssl_verifies(&self, reply: &[u8], data: &[u8]) -> Result<(), String> {
        let _busy = self.busy.lock().unwrap();
        std::fs::write(self.folder.join("check.tsr"), reply).unwrap();
        std::fs::write(self.folder.join("check.data"), data).unwrap();
        let args = ["ts", "-verify", "-in", "check.tsr", "-data", "check.data", "-CAfile", "root.pem"];
        let (good, _, complaint) = try_openssl(&self.folder, &[&args[..], &["-untrusted", "chain.pem"]].concat());
        if good { Ok(()) } else { Err(complaint) }
    }

    /// The TSTInfo in a reply.
    pub fn content(&self, reply: &[u8]) -> Vec<u8> {
        std::fs::write(self.folder.join("in.tsr"), reply).unwrap();
        openssl(&self.folder, &["ts", "-reply", "-in", "in.tsr", "-token_out", "-out", "token.der"]);
        openssl(
            &self.folder,
            &["cms", "-verify", "-noverify", "-inform", "DER", "-in", "token.der", "-out", "content.der"],
        );
        std::fs::read(self.folder.join("content.der")).unwrap()
    }

    /// A reply with this TSTInfo, signed with `<name>.key` and `<name>.pem`: also what `openssl ts` would not sign.
    pub fn sign(&self, content: &[u8], name: &str, more: &[&str]) -> Vec<u8> {
        std::fs::write(self.folder.join("content.der"), content).unwrap();
        let (certificate, key) = (format!("{name}.pem"), format!("{name}.key"));
        let args = [
            "cms",
            "-sign",
            "-binary",
            "-nodetach",
            "-econtent_type",
            "1.2.840.113549.1.9.16.1.4",
            "-in",
            "content.der",
            "-outform",
            "DER",
            "-out",
            "signed.der",
            "-signer",
            &certificate,
            "-inkey",
            &key,
            "-certfile",
            "chain.pem",
        ];
        openssl(&self.folder, &[&args[..], more].concat());
        let token = std::fs::read(self.folder.join("signed.der")).unwrap();
        sequence(&[&[0x30, 3, 2, 1, 0], &token])
    }
}

/// A DER SEQUENCE of these elements.
pub fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    element(0x30, &parts.concat())
}

/// A DER element.
pub fn element(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    match value.len() {
        len @ 0..=127 => bytes.push(len as u8),
        len @ 128..=255 => bytes.extend([0x81, len as u8]),
        len => bytes.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    bytes.extend_from_slice(value);
    bytes
}
