use super::*;
use proptest::prelude::*;

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        features: 0,
        payload_bytes_max: 262_144,
        volume: VolumeId(uuid::Uuid::from_u128(1)),
        replica: ReplicaId(2),
        key_id: 3,
        role: Role::Engine,
        lineage: Lineage(uuid::Uuid::from_u128(4)),
        generation: Generation(5),
        engine: InstanceUuid(uuid::Uuid::from_u128(6)),
        epoch: Epoch(7),
        process: ProcessUuid(uuid::Uuid::from_u128(8)),
        boot: BootId(uuid::Uuid::from_u128(9)),
        nonce: [10; 32],
    }
}
const TODAY: Terms = Terms { version: 3, features: FEATURE_TAGS, payload_bytes_max: 262_144 };
const BEFORE: Terms = Terms { version: 2, features: 0, payload_bytes_max: 262_144 };

const GOLDEN_WELCOME_2: &str = concat!(
    "000000400000000000000000000000000000000000000004010000000000000002000000000000000101010000000201",
    "000000020000000000000000000000000000000000000e04000000000000000101000000000000000200000000000000",
    "01000a006673796e633a2045494f4d00000000000000",
);
const GOLDEN_WELCOME_3: &str =
    "0000000000000000000000000000000b0000000000000000000000000000000c0100000005000000312e322e33";
const GOLDEN_WELCOME_MAC: &str = "f3bdf08556cffc6ba646a553614fb8061ed1465cc33560884dfb3600deabaa7c";
const GOLDEN_REFUSED: &str = concat!(
    "0109000000000000000000000000000000000000000000000602006e6f650d030613047c011aabfef07b2491cbfed79b",
    "26e1c1e4146d1c6bf8b92e9163",
);

fn about() -> About {
    About {
        process: ProcessUuid(uuid::Uuid::from_u128(11)),
        boot: BootId(uuid::Uuid::from_u128(12)),
        build: "1.2.3".to_owned(),
    }
}
fn welcome() -> Welcome {
    Welcome {
        size_bytes: 1 << 30,
        lineage: Lineage(uuid::Uuid::from_u128(4)),
        view: View {
            generation: Generation(1),
            epoch: Epoch(2),
            members: [ReplicaId(1)].into_iter().collect(),
            needs_registry: true,
        },
        configured: [ReplicaId(1), ReplicaId(2)].into_iter().collect(),
        incarnation: Incarnation(uuid::Uuid::from_u128(14)),
        revision: 4,
        basis: Some(Stamp { generation: Generation(1), epoch: Epoch(2), round: 0 }),
        stamps: false,
        settled: None,
        syncing: true,
        cache_lost: false,
        failed: "fsync: EIO".to_owned(),
        flush_sequence: 77,
    }
}
fn transcript_of(key: &[u8; 32]) -> Transcript {
    let hello = hello();
    let challenge = Challenge::under(&TODAY, &about(), [13; 32]).proven(key, &hello);
    let proof = Proof::of(key, &hello, &challenge);
    Transcript { hello, challenge, proof }
}
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
fn challenge() -> Challenge {
    Challenge {
        version: 1,
        features: 0,
        payload_bytes_max: 262_144,
        process: ProcessUuid(uuid::Uuid::from_u128(11)),
        boot: BootId(uuid::Uuid::from_u128(12)),
        nonce: [13; 32],
        proof: [0; 32],
    }
}

#[test]
fn golden_hello() {
    let bytes = frame(MessageKind::Hello, &hello().encode());
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let expected = concat!(
        "4846485301009d00ba8821fc",
        "010001000000000000000000000004000000000000000000000000000000000102000000030000000000000001",
        "0000000000000000000000000000000405000000000000000000000000000000000000000000000607000000",
        "000000000000000000000000000000000000000800000000000000000000000000000009",
        "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"
    );
    assert_eq!(hex, expected);
}

#[test]
fn both_sides_prove_the_key() {
    let (key, other) = ([1; 32], [2; 32]);
    let hello = hello();
    let challenge = challenge().proven(&key, &hello);
    assert_eq!(challenge.verify(&key, &hello), Ok(()));
    assert_eq!(challenge.verify(&other, &hello), Err(HandshakeError::Proof));
    let proof = Proof::of(&key, &hello, &challenge);
    assert_eq!(proof.verify(&key, &hello, &challenge), Ok(()));
    assert_eq!(proof.verify(&other, &hello, &challenge), Err(HandshakeError::Proof));
    // A replica's proof is of no use as an engine's.
    let reflected = Proof { proof: challenge.proof };
    assert_eq!(reflected.verify(&key, &hello, &challenge), Err(HandshakeError::Proof));
}

#[test]
fn a_proof_covers_everything_negotiated() {
    let key = [1; 32];
    let hello = hello();
    let challenge = challenge().proven(&key, &hello);
    let changed = Hello { generation: Generation(6), ..hello.clone() };
    assert_eq!(challenge.verify(&key, &changed), Err(HandshakeError::Proof));
    let weaker = Challenge { payload_bytes_max: 1, ..challenge.clone() };
    assert_eq!(weaker.verify(&key, &hello), Err(HandshakeError::Proof));
}

#[test]
fn versions_without_overlap_are_refused_by_name() {
    let terms = |hello: Hello| hello.terms(262_144);
    let future = Hello { version_min: 4, version_max: 5, ..hello() };
    let said = terms(future).unwrap_err().to_string();
    assert!(said.contains("this side speaks 2 to 3, the peer 4 to 5"), "{said}");
    // The first version knew no maps: what it acknowledges, nobody would remember.
    let past = Hello { version_max: 1, ..hello() };
    assert!(terms(past).is_err());
    assert_eq!(terms(Hello { version_max: 9, ..hello() }).unwrap().version, 3);
    assert_eq!(terms(Hello { version_max: 2, ..hello() }).unwrap().version, 2);
}

#[test]
fn features_are_those_that_both_know() {
    let offer = |version_max, features| Hello { version_max, features, ..hello() }.terms(4096).unwrap();
    assert_eq!(offer(3, u64::MAX), Terms { payload_bytes_max: 4096, ..TODAY });
    assert_eq!(offer(3, 1 << 40).features, 0);
    assert_eq!(offer(2, u64::MAX), Terms { payload_bytes_max: 4096, ..BEFORE });
}

#[test]
fn terms_that_were_not_offered_are_refused() {
    let hello = Hello { version_max: 3, features: FEATURE_TAGS, ..hello() };
    let chosen = |terms: Terms| Challenge::under(&terms, &about(), [13; 32]).terms(&hello);
    for good in [TODAY, BEFORE] {
        assert_eq!(chosen(good), Ok(good));
    }
    for (bad, field) in [
        (Terms { version: 4, ..TODAY }, "version"),
        (Terms { features: FEATURE_TAGS | 2, ..TODAY }, "features"),
        (Terms { payload_bytes_max: 262_145, ..TODAY }, "payload limit"),
    ] {
        assert!(matches!(chosen(bad), Err(HandshakeError::Terms { what, .. }) if what == field));
    }
}

#[test]
fn challenge_names_no_process_from_version_3_on() {
    let before = Challenge::under(&BEFORE, &about(), [13; 32]);
    assert_eq!((before.process, before.boot), (about().process, about().boot));
    let today = Challenge::under(&TODAY, &about(), [13; 32]);
    assert_eq!((today.process, today.boot), (ProcessUuid::nil(), BootId::nil()));
}

#[test]
fn last_words_are_opened_only_as_they_were_sealed() {
    let key = [1; 32];
    let transcript = transcript_of(&key);
    let body = welcome().encode(&TODAY, &about());
    let sealed = transcript.seal(&key, MessageKind::Welcome, body.clone());
    assert_eq!(transcript.open(&key, MessageKind::Welcome, &sealed), Ok(&body[..]));
    let refused = |transcript: &Transcript, key: &[u8; 32], kind, sealed: &[u8]| {
        assert_eq!(transcript.open(key, kind, sealed), Err(HandshakeError::Mac { kind }));
    };
    refused(&transcript, &key, MessageKind::Refused, &sealed);
    refused(&transcript, &[2; 32], MessageKind::Welcome, &sealed);
    for at in 0..sealed.len() {
        let mut bent = sealed.clone();
        bent[at] ^= 1;
        refused(&transcript, &key, MessageKind::Welcome, &bent);
        refused(&transcript, &key, MessageKind::Welcome, &sealed[..at]);
    }
    // A last word of another handshake, whichever part of it differs.
    let mut other = transcript.clone();
    other.hello.version_max = 2;
    refused(&other, &key, MessageKind::Welcome, &sealed);
    let mut other = transcript.clone();
    other.challenge.nonce = [14; 32];
    refused(&other, &key, MessageKind::Welcome, &sealed);
    let mut other = transcript.clone();
    other.proof.proof = [0; 32];
    refused(&other, &key, MessageKind::Welcome, &sealed);
}

#[test]
fn welcome_stamps_round_trip_as_a_tag() {
    let stamp = Stamp { generation: Generation(1), epoch: Epoch(2), round: 5 };
    let transcript = transcript_of(&[1; 32]);
    for settled in [None, Some(Stamp { round: 4, ..stamp })] {
        let stamped = Welcome { basis: Some(stamp), stamps: true, settled, ..welcome() };
        let today = stamped.encode(&TODAY, &about());
        let read = Welcome::decode(&today, &TODAY, &transcript.challenge).unwrap().0;
        assert_eq!(read, stamped);
        // A peer of before knows none of it.
        let before = stamped.encode(&BEFORE, &about());
        let read = Welcome::decode(&before, &BEFORE, &transcript.challenge).unwrap().0;
        assert_eq!((read.stamps, read.settled, read.basis.unwrap().round), (false, None, 0));
    }
}

#[test]
fn golden_last_words() {
    let key = [1; 32];
    let transcript = transcript_of(&key);
    let before = welcome().encode(&BEFORE, &about());
    let today = welcome().encode(&TODAY, &about());
    assert_eq!(hex(&before), GOLDEN_WELCOME_2);
    assert_eq!(hex(&today), [GOLDEN_WELCOME_2, GOLDEN_WELCOME_3].concat());
    let sealed = transcript.seal(&key, MessageKind::Welcome, today.clone());
    assert_eq!(hex(&sealed[today.len()..]), GOLDEN_WELCOME_MAC);
    let refused = Refused {
        kind: RefusalKind::Fenced,
        generation: Generation(9),
        engine: InstanceUuid(uuid::Uuid::from_u128(6)),
        reason: "no".to_owned(),
    };
    let sealed = transcript.seal(&key, MessageKind::Refused, refused.encode());
    assert_eq!(hex(&sealed), GOLDEN_REFUSED);
}

#[test]
fn welcome_tags_unknown_are_skipped_required_refused() {
    let extended = |required: bool| {
        let mut tags = TagWriter::new();
        tags.put(999, required, b"of the future");
        let mut body = welcome().encode(&TODAY, &about());
        body.extend_from_slice(&tags.into_bytes());
        Welcome::decode(&body, &TODAY, &challenge())
    };
    assert_eq!(extended(false), Ok((welcome(), about())));
    let refused = extended(true).unwrap_err().to_string();
    assert!(refused.contains("999 is required"), "{refused}");
    // Without the feature there are none, and what follows is not looked at.
    let plain = Terms { features: 0, ..TODAY };
    let body = [welcome().encode(&plain, &about()), vec![0xff; 3]].concat();
    assert_eq!(Welcome::decode(&body, &plain, &challenge()).unwrap().1.build, "");
}

#[test]
fn messages_round_trip_and_survive_truncation() {
    let welcome = welcome();
    let refused = Refused {
        kind: RefusalKind::Fenced,
        generation: Generation(9),
        engine: InstanceUuid::random(),
        reason: "é".repeat(600),
    };
    assert_eq!(Hello::decode(&hello().encode()), Ok(hello()));
    assert_eq!(Challenge::decode(&challenge().encode()), Ok(challenge()));
    for terms in [BEFORE, TODAY] {
        let body = welcome.encode(&terms, &about());
        let challenge = Challenge::under(&terms, &about(), [13; 32]);
        let (decoded, said) = Welcome::decode(&body, &terms, &challenge).unwrap();
        let build = if terms == TODAY { "1.2.3".to_owned() } else { String::new() };
        assert_eq!((decoded, said), (welcome.clone(), About { build, ..about() }));
        // All tags may be missing: each is optional.
        let tags = if terms == TODAY { 8 + 5 } else { 0 };
        for end in (0..body.len()).filter(|end| end + tags != body.len()) {
            assert!(Welcome::decode(&body[..end], &terms, &challenge).is_err(), "{end} bytes");
        }
    }
    let cut_short = Refused::decode(&refused.encode()).unwrap();
    assert!(refused.reason.starts_with(&cut_short.reason) && cut_short.reason.len() == 512);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Hello::decode(&bytes);
        let _ = Challenge::decode(&bytes);
        let _ = Proof::decode(&bytes);
        for terms in [BEFORE, TODAY] {
            let _ = Welcome::decode(&bytes, &terms, &challenge());
        }
        let transcript = transcript_of(&[1; 32]);
        prop_assert!(transcript.open(&[1; 32], MessageKind::Welcome, &bytes).is_err());
        let _ = Refused::decode(&bytes);
        if let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() {
            let _ = Prefix::decode(prefix);
        }
    }
}
