//! The control protocol is additive only, so that an agent works with the instances of the build before it: whatever
//! stands in the recorded contract still stands, with the same number and type.
//!
//! `golden/instance-v1.txt` is the contract as it was first recorded. A field or method that is added may be added to
//! the file too; a line that has to be removed or changed is a break, and the fix is in the protocol.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorSet};

const RECORDED: &str = include_str!("golden/instance-v1.txt");

fn fields(prefix: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let name = format!("{prefix}.{}", message.name());
    for field in &message.field {
        let oneof = field.oneof_index.and_then(|i| message.oneof_decl.get(usize::try_from(i).ok()?));
        // An `optional` field is the only one of a oneof that the compiler makes up.
        let oneof = oneof.filter(|_| !field.proto3_optional()).map(|o| format!(" in {}", o.name()));
        let line = format!(
            "{name} {} = {} {:?} {:?} {}{}",
            field.name(),
            field.number(),
            field.label(),
            field.r#type(),
            field.type_name(),
            oneof.unwrap_or_default()
        );
        lines.insert(line.trim_end().to_owned());
    }
    for nested in &message.nested_type {
        fields(&name, nested, lines);
    }
}

fn contract() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(holdfast_proto::pb::DESCRIPTORS).expect("descriptors of this build");
    let mut lines = BTreeSet::new();
    for file in set.file.iter().filter(|f| f.package() == "holdfast.instance.v1") {
        for message in &file.message_type {
            fields(file.package(), message, &mut lines);
        }
        for service in &file.service {
            for method in &service.method {
                lines.insert(format!(
                    "{}.{} {}({}) -> {}{}",
                    file.package(),
                    service.name(),
                    method.name(),
                    method.input_type(),
                    if method.server_streaming() { "stream " } else { "" },
                    method.output_type()
                ));
            }
        }
    }
    lines
}

#[test]
fn nothing_recorded_was_renumbered_removed_or_given_another_type() {
    let now = contract();
    let broken: Vec<&str> = RECORDED.lines().filter(|line| !now.contains(line.trim_end())).collect();
    let all: Vec<&str> = now.iter().map(String::as_str).collect();
    assert!(!RECORDED.trim().is_empty(), "nothing is recorded; the contract is:\n{}", all.join("\n"));
    assert!(broken.is_empty(), "an older instance would not be understood:\n{}", broken.join("\n"));
}

#[test]
fn every_version_still_spoken_is_a_range_that_contains_this_builds() {
    let (min, max) = (holdfast_proto::INSTANCE_PROTOCOL_MIN, holdfast_proto::INSTANCE_PROTOCOL_MAX);
    assert!(
        min <= max && min + 1 >= max,
        "this build speaks {min} to {max}: its own version and the one before"
    );
}
