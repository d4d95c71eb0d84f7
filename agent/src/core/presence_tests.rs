use super::*;

const NONCE: Uuid = Uuid::from_u128(99);

const fn secs(s: u64) -> Moment {
    Duration::from_secs(s)
}

fn boot(number: u128) -> BootId {
    BootId(Uuid::from_u128(number))
}

fn presence(home: u128, run: u128, boot_id: BootId, lock_inode: u64) -> Presence {
    let lodging = Lodging {
        host: "h1".to_owned(),
        pid: 42,
        data_dir: "/data".to_owned(),
        boot: boot_id,
        lock_device: 8,
        lock_inode,
    };
    Presence {
        schema: PRESENCE_SCHEMA,
        home: Uuid::from_u128(home),
        run: Uuid::from_u128(run),
        address: "10.0.0.2".to_owned(),
        features: Vec::new(),
        lodging: Some(lodging),
        answers: None,
    }
}

fn there(presence: &Presence) -> Found {
    Found::Presence(Box::new(presence.clone()))
}

/// A run that looks at what it finds.
fn newcomer() -> Identity {
    Identity::new(presence(1, 2, boot(1), 5))
}

fn look(identity: &mut Identity, found: &Found, at: u64) -> Step {
    identity.look(found, secs(at), || NONCE)
}

#[test]
fn a_free_name_is_taken_and_a_lost_key_written_again() {
    let mut mine = newcomer();
    assert_eq!(look(&mut mine, &Found::Nothing, 0), Step::Write);
    let own = there(&mine.mine);
    assert_eq!(look(&mut mine, &own, 5), Step::Keep);
    assert_eq!(look(&mut mine, &Found::Nothing, 10), Step::Write, "deleted by mistake");
    assert_eq!(look(&mut mine, &Found::Leftover, 15), Step::Write, "overwritten by mistake");
}

#[test]
fn a_restart_that_holds_the_same_lock_takes_over_at_once() {
    let mut mine = newcomer();
    assert_eq!(look(&mut mine, &there(&presence(1, 1, boot(1), 5)), 0), Step::Write);
}

#[test]
fn a_clone_is_told_from_a_restart_by_boot_and_lock() {
    for (what, other) in [
        ("another kernel", presence(1, 1, boot(2), 5)),
        ("a copy beside it", presence(1, 1, boot(1), 6)),
        ("another directory", presence(9, 1, boot(1), 6)),
        ("an earlier version", Presence { lodging: None, ..presence(1, 1, boot(1), 5) }),
    ] {
        assert!(matches!(look(&mut newcomer(), &there(&other), 0), Step::Ask(_)), "{what}");
    }
    // Neither says where it runs: that proves nothing.
    let mut mine = newcomer();
    mine.mine.lodging = None;
    let other = Presence { lodging: None, ..presence(1, 1, boot(1), 5) };
    assert!(matches!(look(&mut mine, &there(&other), 0), Step::Ask(_)));
}

#[test]
fn an_answer_of_the_first_run_ends_the_newcomer() {
    let (mut mine, mut first) = (newcomer(), Identity::new(presence(1, 1, boot(2), 5)));
    let Step::Ask(question) = look(&mut mine, &there(&first.mine), 0) else { panic!("a question") };
    mine.asked();
    assert!(matches!(look(&mut mine, &there(&first.mine), 1), Step::Wait(_)));
    assert!(first.hear(&question));
    assert!(!first.hear(&question), "answered once");
    let Step::End(said) = look(&mut mine, &there(&first.mine), 2) else { panic!("an answer") };
    for part in ["host h1", "pid 42", "/data", "10.0.0.2", "copy", "--node"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let mut stranger = Identity::new(presence(9, 2, boot(1), 5));
    look(&mut stranger, &there(&first.mine), 0);
    let Step::End(said) = look(&mut stranger, &there(&first.mine), 1) else { panic!("an answer") };
    assert!(!said.contains("copy"), "{said}");
}

#[test]
fn no_answer_is_waited_for_until_the_presence_expires() {
    let (mut mine, first) = (newcomer(), there(&presence(1, 1, boot(2), 5)));
    look(&mut mine, &first, 0);
    mine.asked();
    for at in 1..30 {
        assert!(matches!(look(&mut mine, &first, at), Step::Wait(_)), "{at}");
    }
    assert_eq!(look(&mut mine, &Found::Nothing, 30), Step::Write, "it has expired");
}

#[test]
fn a_presence_that_does_not_expire_is_a_living_run() {
    let (mut mine, first) = (newcomer(), there(&presence(1, 1, boot(2), 5)));
    look(&mut mine, &first, 0);
    mine.asked();
    assert!(matches!(look(&mut mine, &first, 30), Step::End(_)), "of a version that answers nothing");
    let mut mine = newcomer();
    let newer = Found::NotUnderstood("schema 9".to_owned());
    assert!(matches!(look(&mut mine, &newer, 0), Step::Ask(_)));
    assert!(matches!(look(&mut mine, &newer, 30), Step::End(said) if said.contains("schema 9")));
}

#[test]
fn time_in_which_the_registry_was_away_proves_no_life() {
    let (mut mine, first) = (newcomer(), there(&presence(1, 1, boot(2), 5)));
    look(&mut mine, &first, 0);
    mine.asked();
    mine.lost(secs(100));
    assert!(matches!(look(&mut mine, &first, 101), Step::Ask(_)), "the question has expired too");
    assert!(matches!(look(&mut mine, &first, 129), Step::Ask(_)));
    assert!(matches!(look(&mut mine, &first, 130), Step::End(_)));
}

#[test]
fn a_run_in_place_of_the_one_that_was_asked_is_asked_anew() {
    let mut mine = newcomer();
    look(&mut mine, &there(&presence(1, 1, boot(2), 5)), 0);
    mine.asked();
    let answered = Presence { answers: Some(NONCE), ..presence(1, 7, boot(2), 5) };
    let step = mine.look(&there(&answered), secs(29), || Uuid::from_u128(100));
    assert!(matches!(step, Step::Ask(_)), "an answer to another question: {step:?}");
}

#[test]
fn a_presence_of_an_earlier_version_is_read() {
    let text = r#"{"schema":1,"home":"00000000-0000-0000-0000-000000000001",
        "run":"00000000-0000-0000-0000-000000000002","address":"10.0.0.1"}"#;
    let read: Presence = serde_json::from_str(text).unwrap();
    assert_eq!((read.lodging.as_ref(), read.answers), (None, None));
    assert!(!serde_json::to_string(&read).unwrap().contains("lodging"));
}
