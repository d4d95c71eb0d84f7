//! The driver against the real kernel: sockets, files, wakes, and the ends of their lives.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::*;

mod conn;
mod echo;
mod file;
mod life;

/// Far beyond what any of this takes, so that a hang becomes a failure.
const PATIENCE: Duration = Duration::from_secs(30);

fn driver() -> Driver {
    let pool = Pool::new(PoolConfig { small: 64, medium: 16, large: 8 }).unwrap();
    Driver::new(DriverConfig::default(), pool).unwrap()
}

/// Turns until `pick` has found what it looks for; everything else that happens goes by it too.
fn until<T>(driver: &mut Driver, mut pick: impl FnMut(&mut Driver, Completion) -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut out = Vec::new();
    let mut found = None;
    while found.is_none() {
        assert!(Instant::now() < deadline, "nothing came of it in {PATIENCE:?}");
        driver.turn(Some(deadline), &mut out).unwrap();
        for completion in out.drain(..) {
            found = found.or(pick(driver, completion));
        }
    }
    found.unwrap()
}

fn until_closed(driver: &mut Driver, id: ConnId) {
    until(driver, |_, completion| match completion {
        Completion::Closed { conn } => {
            assert_eq!(conn, id);
            Some(())
        }
        _ => None,
    });
}

fn file_result(driver: &mut Driver, wanted: u64) -> (Result<usize, Errno>, Option<Buf>) {
    until(driver, |_, completion| match completion {
        Completion::File { token, result, buf } => {
            assert_eq!(token, wanted);
            Some((result, buf))
        }
        other => panic!("{other:?}"),
    })
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0u8..251).cycle().skip(seed % 251).take(len).collect()
}
