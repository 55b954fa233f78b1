//! A TSA behind HTTPS, the whole way: the address's certificate is checked, by its CA and its name, before a word is sent.
//!
//! TLS is ended by Python's `ssl` (OpenSSL) before the plain TSA of the other tests. Which CAs a process trusts is in its
//! environment, so each case runs in a process of its own: this program again, with `--exact` and the case in variables.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::common::*;
use crate::openssl::server::Server;
use crate::openssl::{Kind, Tsa};
use agd_cli::stamp::{Mode, Stamper};
use agd_cli::store::Reader;
use agd_cli::tsa::Tsa as Client;
use agd_cli::verify;
use agd_tsp::Authorities;

/// Ends TLS: `CERTIFICATE KEY PORT`, of the plain server behind. Prints its own port and goes with its input.
const TLS: &str = r#"
import socket, ssl, sys, threading

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)

def serve(client):
    try:
        with context.wrap_socket(client, server_side=True) as outside:
            request = b""
            while b"\r\n\r\n" not in request:
                request += outside.recv(65536) or sys.exit()
            head, body = request.split(b"\r\n\r\n", 1)
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            while len(body) < length:
                body += outside.recv(65536) or sys.exit()
            with socket.create_connection(("127.0.0.1", int(sys.argv[3]))) as plain:
                plain.sendall(head + b"\r\n\r\n" + body)
                while reply := plain.recv(65536):
                    outside.sendall(reply)
    except OSError:
        pass

def accept():
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

threading.Thread(target=accept, daemon=True).start()
sys.stdin.read()
"#;

struct Tls {
    child: Child,
    port: u16,
    _input: ChildStdin,
}

impl Tls {
    /// Before the server at this address, with `<name>.pem` and `<name>.key` of the folder.
    fn start(folder: &Path, name: &str, server: &Server) -> Self {
        let behind = server.url();
        let behind = behind.rsplit(':').next().unwrap().trim_end_matches("/tsr").to_owned();
        let files = ["pem", "key"].map(|ending| folder.join(format!("{name}.{ending}")));
        let mut child = Command::new("python3")
            .args(["-c", TLS])
            .args(files)
            .arg(behind)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is needed");
        let input = child.stdin.take().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, port: line.trim().parse().unwrap(), _input: input }
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const CASE: &str = "AGD_TEST_HTTPS";

fn authorities(pem: &Path) -> Authorities {
    Authorities::from_pem(&std::fs::read(pem).unwrap()).unwrap()
}

fn stamps(root: &Path) -> usize {
    files(root).into_keys().filter(|name| name.ends_with(".tsr")).count()
}

/// One case, in a process of its own: publishes with a timestamp of the TSA at an address, which is required.
fn publish_in_this_process(case: &str) {
    let [url, root, pem] = case.split('\n').collect::<Vec<_>>().try_into().unwrap();
    let client = Client::new(url, Duration::from_secs(10)).unwrap();
    let stamper = Stamper::new(vec![client], authorities(Path::new(pem)), Mode::Required, Duration::from_secs(3600));
    let mut database = FakeDatabase::new();
    database.write(None, 3);
    let mut publisher = publisher(Path::new(root)).with_stamper(stamper);
    let mut round = publisher.round(&mut database, &mut |_| {});
    publisher.stamp(&mut database, true, &mut round);
    let failures: Vec<String> = round.failures.iter().map(|(_, failure)| failure.to_string()).collect();
    assert!(failures.is_empty() && round.stamped.len() == 1, "{}", failures.join("; "));
}

#[test]
fn a_tsa_behind_https_is_asked_when_its_certificate_holds_and_never_else() {
    if let Ok(case) = std::env::var(CASE) {
        return publish_in_this_process(&case);
    }
    let folder = tempfile::tempdir().unwrap();
    let tsa = Arc::new(Tsa::new(&folder.path().join("tsa"), Kind::default()));
    let server = Server::start(Arc::clone(&tsa));
    // Another CA than that of the timestamps: the one says who is at the address, the other who may sign.
    let web = Tsa::new(&folder.path().join("web"), Kind { intermediate: false, ..Kind::default() });
    let leaf = |name: &str, subject: &str| {
        web.key(name);
        let extensions = format!("basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName={subject}\n");
        web.certificate(name, "/O=Test/CN=web", "root", &extensions, "30");
    };
    leaf("right", "IP:127.0.0.1");
    leaf("wrong", "DNS:tsa.example,IP:127.0.0.2");
    let (trusted, stranger) = (web.root(), tsa.root());
    for (certificate, trusts, words) in [
        ("right", &trusted, None),
        // A CA of the same name, with another key.
        ("right", &stranger, Some("invalid peer certificate: BadSignature")),
        ("wrong", &trusted, Some("not valid for name")),
    ] {
        let tls = Tls::start(&web.folder, certificate, &server);
        let store = tempfile::tempdir().unwrap();
        let url = format!("https://127.0.0.1:{}/tsr", tls.port);
        let case = [url.as_str(), store.path().to_str().unwrap(), tsa.root().to_str().unwrap()].join("\n");
        let asked = server.asked();
        let own = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "https::a_tsa_behind_https_is_asked_when_its_certificate_holds_and_never_else",
                "--nocapture",
            ])
            .env(CASE, &case)
            .env("SSL_CERT_FILE", trusts)
            .env_remove("SSL_CERT_DIR")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[own.stdout, own.stderr].concat()).into_owned();
        assert!(said.contains("running 1 test"), "{said}");
        match words {
            None => {
                assert!(own.status.success(), "{said}");
                assert_eq!((server.asked() - asked, stamps(store.path())), (1, 1));
                let (reader, ca) = (Reader::open(store.path()).unwrap(), authorities(&tsa.root()));
                let report = verify::run_with(&reader, Some(&policy()), Some(&ca), &AtomicU64::new(0)).unwrap();
                assert_eq!(report.exit_code(), 0, "{:?}", findings(&report));
            }
            Some(words) => {
                assert!(!own.status.success() && said.contains(&url) && said.contains(words), "{words}: {said}");
                assert_eq!((server.asked() - asked, stamps(store.path())), (0, 0), "no word was sent");
            }
        }
    }
}
