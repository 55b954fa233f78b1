//! A TSA behind HTTP: one thread, one request at a time, and the answer that a test wants.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Tsa;

/// What comes back.
#[derive(Debug, Clone)]
pub enum Answer {
    /// What the TSA says.
    Good,
    /// These bytes.
    Bytes(Vec<u8>),
    /// A reply for the request before this one.
    Old,
    /// This status, with one header more.
    Status(u16, &'static str),
    /// Nothing, for so long.
    Slow(Duration),
    /// The connection is closed without a word.
    Closed,
    /// More and more bytes.
    Endless,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(tsa: Arc<Tsa>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(Mutex::new(Answer::Good));
        let (asked, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (answers, count, stopped) = (Arc::clone(&answer), Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut old = Vec::new();
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                count.fetch_add(1, Ordering::Relaxed);
                let answer = answers.lock().unwrap().clone();
                // Whoever asks may be gone.
                let _ = serve(stream, &answer, &tsa, &mut old);
            }
        });
        Self { address, answer, asked, stop, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}/tsr", self.address)
    }

    pub fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// How often it was asked.
    pub fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, answer: &Answer, tsa: &Tsa, old: &mut Vec<u8>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    let body = loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..read]);
        let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
        assert!(head.starts_with("post /tsr http/1.1"), "{head}");
        assert!(head.contains("content-type: application/timestamp-query"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
        let length = length.unwrap_or_else(|| panic!("a length: {head}"));
        if request.len() >= end + 4 + length {
            break request[end + 4..end + 4 + length].to_vec();
        }
    };
    let reply = match answer {
        Answer::Good => tsa.reply(&body),
        Answer::Bytes(bytes) => bytes.clone(),
        Answer::Old => old.clone(),
        Answer::Status(status, header) => {
            let head = format!("HTTP/1.1 {status} Words\r\n{header}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            return stream.write_all(head.as_bytes());
        }
        Answer::Slow(pause) => {
            std::thread::sleep(*pause);
            return Ok(());
        }
        Answer::Closed => return Ok(()),
        Answer::Endless => {
            stream.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/timestamp-reply\r\nconnection: close\r\n\r\n",
            )?;
            for _ in 0..100_000 {
                stream.write_all(&buffer)?;
            }
            return Ok(());
        }
    };
    let length = reply.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/timestamp-reply\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&reply)?;
    if matches!(answer, Answer::Good) {
        *old = reply;
    }
    Ok(())
}
