//! Whole handshakes over an in-memory stream.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use crate::frontend::nbd::proto::{Fields, OptionHeader, info, option, rep};
use crate::frontend::nbd::{ExportInfo, HandshakeError, Negotiated, negotiate};

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";
const FLAGS: [u8; 4] = [0, 0, 0, 3];
/// Has flags, flush, FUA, trim, write zeroes, multi-conn.
const FLAGS_SIMPLE: u16 = 0x016d;
const FLAGS_STRUCTURED: u16 = FLAGS_SIMPLE | 0x80;

type Outcome = Result<Option<Negotiated>, HandshakeError>;

fn export() -> ExportInfo {
    ExportInfo { name: "demo".into(), description: "a volume".into(), size_bytes: 1 << 30 }
}

/// Sends all of `input` and hangs up; returns the outcome, what was answered, and what was left unread.
fn run(input: &[u8]) -> (Outcome, Vec<u8>, Vec<u8>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        // A few bytes at a time.
        let (client, mut server) = duplex(3);
        let (mut from_server, mut to_server) = tokio::io::split(client);
        let input = input.to_vec();
        let write = async move {
            // The server may hang up first.
            let _ = to_server.write_all(&input).await;
            let _ = to_server.shutdown().await;
        };
        let mut answer = Vec::new();
        let serve = async move {
            let outcome = negotiate(&mut server, &export()).await;
            let rest = rest_of(&mut server, outcome.is_ok()).await;
            (outcome, rest)
        };
        let (_, (outcome, rest), read) = tokio::join!(write, serve, from_server.read_to_end(&mut answer));
        read.unwrap();
        (outcome, answer, rest)
    })
}

async fn rest_of(server: &mut DuplexStream, wanted: bool) -> Vec<u8> {
    let mut rest = Vec::new();
    if wanted {
        server.read_to_end(&mut rest).await.unwrap();
    }
    rest
}

fn ask(option: u32, data: &[u8]) -> Vec<u8> {
    [&OptionHeader { option, len: u32::try_from(data.len()).unwrap() }.encode()[..], data].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

fn go(name: &str, wanted: &[u16]) -> Vec<u8> {
    let count = u16::try_from(wanted.len()).unwrap();
    let numbers: Vec<u8> = [count].iter().chain(wanted).flat_map(|n| n.to_be_bytes()).collect();
    [string(name), numbers].concat()
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).unwrap().to_be_bytes().to_vec();
    let queries: Vec<u8> = queries.iter().flat_map(|query| string(query)).collect();
    [string(name), count, queries].concat()
}

/// The option replies, as `(option, type, data)`.
fn replies(answer: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut fields = Fields::new(answer.strip_prefix(GREETING).expect("the greeting"));
    let mut replies = Vec::new();
    while !fields.is_empty() {
        assert_eq!(fields.u64(), Some(0x0003_e889_0455_65a9));
        let (option, kind) = (fields.u32().unwrap(), fields.u32().unwrap());
        replies.push((option, kind, fields.string().unwrap().to_vec()));
    }
    replies
}

fn kinds(answer: &[u8]) -> Vec<u32> {
    replies(answer).into_iter().map(|(_, kind, _)| kind).collect()
}

#[test]
fn go_reads_not_a_byte_too_much() {
    let wanted = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
    for name in ["demo", ""] {
        let input = [
            &FLAGS[..],
            &ask(option::STRUCTURED_REPLY, &[]),
            &ask(option::SET_META_CONTEXT, &contexts(name, &["qemu:other", "base:allocation"])),
            &ask(option::GO, &go(name, &wanted)),
            b"the transmission phase",
        ]
        .concat();
        let (outcome, answer, rest) = run(&input);
        let negotiated = Negotiated { structured_replies: true, base_allocation: true };
        assert_eq!(outcome.unwrap(), Some(negotiated));
        assert_eq!(rest, b"the transmission phase");
        let export = [&[0, 0][..], &(1_u64 << 30).to_be_bytes(), &FLAGS_STRUCTURED.to_be_bytes()].concat();
        let context = [&[0, 0, 0, 1][..], b"base:allocation"].concat();
        let (set, go) = (option::SET_META_CONTEXT, option::GO);
        let expected = [
            (option::STRUCTURED_REPLY, rep::ACK, vec![]),
            (set, rep::META_CONTEXT, context),
            (set, rep::ACK, vec![]),
            (go, rep::INFO, export),
            (go, rep::INFO, b"\0\x01demo".to_vec()),
            (go, rep::INFO, b"\0\x02a volume".to_vec()),
            (go, rep::INFO, b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0".to_vec()),
            (go, rep::ACK, vec![]),
        ];
        assert_eq!(replies(&answer), expected);
    }
}

#[test]
fn info_asks_and_goes_on() {
    let input = [&FLAGS[..], &ask(option::INFO, &go("demo", &[])), &ask(option::ABORT, &[])].concat();
    let (outcome, answer, _) = run(&input);
    assert_eq!(outcome.unwrap(), None);
    assert_eq!(kinds(&answer), [rep::INFO, rep::INFO, rep::ACK, rep::ACK]);
}

#[test]
fn export_name_is_answered_with_and_without_padding() {
    let head = [&(1_u64 << 30).to_be_bytes()[..], &FLAGS_SIMPLE.to_be_bytes()].concat();
    for (flags, padding) in [(3_u32, 0), (1, 124), (0, 124)] {
        let input = [&flags.to_be_bytes()[..], &ask(option::EXPORT_NAME, b"demo"), b"next"].concat();
        let (outcome, answer, rest) = run(&input);
        assert_eq!(outcome.unwrap(), Some(Negotiated::default()));
        assert_eq!(answer, [GREETING, &head, &vec![0; padding]].concat());
        assert_eq!(rest, b"next");
    }
    let (outcome, _, _) = run(&[&FLAGS[..], &ask(option::EXPORT_NAME, b"other")].concat());
    assert!(matches!(outcome, Err(HandshakeError::UnknownExport { name }) if name == "other"));
}

#[test]
fn list_names_the_export() {
    let input = [&FLAGS[..], &ask(option::LIST, &[]), &ask(option::LIST, b"x")].concat();
    let (outcome, answer, _) = run(&input);
    assert_eq!(outcome.unwrap(), None, "a client may just go away between two options");
    let replies = replies(&answer);
    assert_eq!(replies[0], (option::LIST, rep::SERVER, string("demo")));
    assert_eq!(replies[1].1, rep::ACK);
    assert_eq!(replies[2].1, rep::ERR_INVALID);
}

#[test]
fn what_is_not_offered_or_makes_no_sense_is_refused_and_the_handshake_goes_on() {
    let mut long_count = contexts("demo", &["base:allocation"]);
    long_count[8..12].copy_from_slice(&[0xff; 4]);
    let cases = [
        (ask(option::STARTTLS, &[]), rep::ERR_UNSUP),
        (ask(11, &[]), rep::ERR_UNSUP),
        (ask(4, b"data"), rep::ERR_UNSUP),
        (ask(u32::MAX, &[7; 16 * 1024]), rep::ERR_UNSUP),
        (ask(u32::MAX, &[7; 40_000]), rep::ERR_TOO_BIG),
        (ask(option::STRUCTURED_REPLY, b"x"), rep::ERR_INVALID),
        (ask(option::GO, &go("other", &[])), rep::ERR_UNKNOWN),
        (ask(option::INFO, &go("dem", &[])), rep::ERR_UNKNOWN),
        (ask(option::GO, &[]), rep::ERR_INVALID),
        (ask(option::GO, b"\xff\xff\xff\xffdemo\0\0"), rep::ERR_INVALID),
        (ask(option::GO, b"\0\0\0\x04demo\0\x02\0\x01"), rep::ERR_INVALID),
        (ask(option::GO, b"\0\0\0\x04demo\0\0\0"), rep::ERR_INVALID),
        (ask(option::SET_META_CONTEXT, &contexts("demo", &["base:allocation"])), rep::ERR_INVALID),
        (ask(option::SET_META_CONTEXT, &long_count), rep::ERR_INVALID),
    ];
    for (question, expected) in cases {
        let input = [&FLAGS[..], &question, &ask(option::GO, &go("", &[]))].concat();
        let (outcome, answer, _) = run(&input);
        assert_eq!(outcome.unwrap(), Some(Negotiated::default()));
        assert_eq!(kinds(&answer), [expected, rep::INFO, rep::INFO, rep::ACK]);
    }
}

#[test]
fn contexts_are_listed_and_selected() {
    let structured = ask(option::STRUCTURED_REPLY, &[]);
    let (list, set) = (option::LIST_META_CONTEXT, option::SET_META_CONTEXT);
    for (option, queries, found) in [
        (list, &[][..], true),
        (list, &["base:"], true),
        (list, &["base:allocation"], true),
        (list, &["qemu:"], false),
        (set, &[], false),
        (set, &["base:"], false),
        (set, &["base:allocation", "base:allocation"], true),
    ] {
        let question = ask(option, &contexts("demo", queries));
        let input = [&FLAGS[..], &structured, &question, &ask(option::GO, &go("", &[]))].concat();
        let (outcome, answer, _) = run(&input);
        let selected = found && option == set;
        assert_eq!(outcome.unwrap().unwrap().base_allocation, selected, "{option} {queries:?}");
        let answers = kinds(&answer).iter().filter(|kind| **kind == rep::META_CONTEXT).count();
        assert_eq!(answers, usize::from(found), "{option} {queries:?}");
    }
    // The last selection counts, even one that fails.
    let first = ask(set, &contexts("demo", &["base:allocation"]));
    let second = ask(set, &contexts("other", &["base:allocation"]));
    let input = [&FLAGS[..], &structured, &first, &second, &ask(option::GO, &go("", &[]))].concat();
    let (outcome, answer, _) = run(&input);
    assert!(!outcome.unwrap().unwrap().base_allocation);
    assert!(kinds(&answer).contains(&rep::ERR_UNKNOWN));
}

#[test]
fn hostile_clients_are_dropped() {
    let (outcome, _, _) = run(&[0, 0, 0, 4]);
    assert!(matches!(outcome, Err(HandshakeError::ClientFlags { found: 4 })));
    let (outcome, _, _) = run(&[&FLAGS[..], &[0; 16]].concat());
    assert!(matches!(outcome, Err(HandshakeError::Magic(_))));
    let long = OptionHeader { option: option::GO, len: u32::MAX }.encode();
    let (outcome, _, _) = run(&[&FLAGS[..], &long].concat());
    assert!(matches!(outcome, Err(HandshakeError::OptionTooLong { len: u32::MAX, .. })));
    let long_name = OptionHeader { option: option::EXPORT_NAME, len: 20_000 }.encode();
    let (outcome, _, _) = run(&[&FLAGS[..], &long_name].concat());
    assert!(matches!(outcome, Err(HandshakeError::OptionTooLong { .. })));
    let (outcome, _, _) = run(&[&FLAGS[..], &ask(option::LIST, &[]).repeat(1000)].concat());
    assert!(matches!(outcome, Err(HandshakeError::TooManyOptions)));
    let (outcome, _, _) = run(&[&FLAGS[..], &ask(option::GO, &go("demo", &[]))[..20]].concat());
    assert!(matches!(outcome, Err(HandshakeError::Io(_))), "it ended in the middle of an option");
    let (outcome, answer, _) = run(&[]);
    assert!(matches!(outcome, Ok(None)), "a port scan");
    assert_eq!(answer, GREETING);
}
