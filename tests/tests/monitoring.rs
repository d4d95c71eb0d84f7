//! The files of `monitoring/` can be loaded, and ask only for what an agent's page has.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use holdfast_tests::exposition::Page;
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

const ALERTS: &str = include_str!("../../monitoring/alerts.yaml");
const DASHBOARD: &str = include_str!("../../monitoring/dashboard.json");
const OPERATIONS: &str = include_str!("../../docs/operations.md");
/// A page with every family, as the agent's own tests hold it to be.
const PAGE: &str = include_str!("../../agent/src/metrics/page.txt");

/// What Prometheus itself adds to each series, and the alerts' `up`.
const ADDED: [&str; 3] = ["instance", "job", "le"];

/// The labels of each series that a page has, by name.
fn offered() -> BTreeMap<String, BTreeSet<String>> {
    let page = Page::parse(PAGE).unwrap();
    let mut offered: BTreeMap<String, BTreeSet<String>> =
        page.series_names().into_iter().map(|name| (name, BTreeSet::new())).collect();
    for ((name, labels), _) in page.all() {
        offered.get_mut(name).unwrap().extend(labels.keys().cloned());
    }
    offered.insert("up".to_owned(), BTreeSet::new());
    offered
}

/// What labels say: all states and modes are on every page, and these beside them.
fn words() -> BTreeMap<String, BTreeSet<String>> {
    let page = Page::parse(PAGE).unwrap();
    let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let mut words: BTreeMap<String, BTreeSet<String>> = BTreeMap::from([
        ("claim".to_owned(), set(&["claimed", "unclaimed", "unknown"])),
        ("kind".to_owned(), set(&["read", "write", "flush", "trim", "write_zeroes"])),
    ]);
    for ((_, labels), _) in page.all() {
        for (label, word) in labels {
            words.entry(label.clone()).or_default().insert(word.clone());
        }
    }
    words
}

/// The metrics that an expression names, each with the labels that it matches and with what.
fn asked(expression: &str) -> Vec<(String, Vec<(String, String)>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        let word = &rest[start..];
        let end = word.find(|c| !is_name(c)).unwrap_or(word.len());
        let (word, after) = word.split_at(end);
        rest = after;
        if !(word == "up" || word.starts_with("holdfast_") || word.starts_with("process_")) {
            // Not a metric: strings of matchers never get here, words of PromQL do.
            continue;
        }
        let mut labels = Vec::new();
        if let Some(matchers) = after.strip_prefix('{') {
            let (matchers, after) = matchers.split_once('}').expect("braces are closed");
            let matcher = |m: &str| {
                let (label, value) = m.split_at(m.find(['=', '!']).expect("a label is matched"));
                let value = value.trim_start_matches(['=', '!', '~']).trim_matches('"');
                (label.to_owned(), value.to_owned())
            };
            labels = matchers.split(',').map(matcher).collect();
            rest = after;
        }
        found.push((word.to_owned(), labels));
    }
    found
}

/// The labels that are kept by `by (...)` or compared by `on (...)`.
fn grouped(expression: &str) -> Vec<String> {
    let lists = expression.split(" by (").skip(1).chain(expression.split(" on (").skip(1));
    let labels = lists.flat_map(|rest| rest.split(')').next().unwrap_or_default().split(','));
    labels.map(|label| label.trim().to_owned()).collect()
}

fn check(what: &str, expression: &str, offered: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let (asked, words) = (asked(expression), words());
    assert!(!asked.is_empty(), "{what} asks for nothing of ours: {expression}");
    let mut known: BTreeSet<String> = ADDED.iter().map(|label| (*label).to_owned()).collect();
    for (name, labels) in asked {
        let has = offered.get(&name).unwrap_or_else(|| panic!("{what}: no page has {name}"));
        known.extend(has.iter().cloned());
        for (label, value) in labels {
            let there = has.contains(&label) || ADDED.contains(&label.as_str());
            assert!(there, "{what}: {name} has no label {label:?}, but {has:?}");
            // A variable of the dashboard may be anything.
            for word in value.split('|').filter(|word| has.contains(&label) && !word.starts_with('$')) {
                let said = words.get(&label).is_some_and(|words| words.contains(word));
                assert!(said, "{what}: {label} never is {word:?}, but {:?}", words.get(&label));
            }
        }
    }
    for label in grouped(expression) {
        assert!(known.contains(&label), "{what}: {label:?} is no label of what it asks for");
    }
    known
}

fn text<'a>(rule: &'a Yaml, key: &str) -> &'a str {
    rule[key].as_str().unwrap_or_else(|| panic!("{rule:?} has no {key}"))
}

fn rules() -> Vec<Yaml> {
    let documents = YamlLoader::load_from_str(ALERTS).unwrap();
    assert_eq!(documents.len(), 1);
    let groups = documents[0]["groups"].as_vec().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_vec().expect("rules").clone()).collect()
}

#[test]
fn alerts_ask_for_what_is_there_and_say_how_bad_it_is() {
    let offered = offered();
    let mut names = BTreeSet::new();
    for rule in rules() {
        let name = text(&rule, "alert");
        assert!(names.insert(name.to_owned()), "{name} is there twice");
        let known = check(name, text(&rule, "expr"), &offered);
        let severity = text(&rule["labels"], "severity");
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        for part in text(&rule["annotations"], "summary").split("$labels.").skip(1) {
            let label: String = part.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            assert!(known.contains(&label), "{name}: its summary names {label:?}");
        }
    }
    assert!(names.len() >= 20, "{names:?}");
}

#[test]
fn every_alert_is_explained_and_nothing_else_is() {
    let explained = OPERATIONS.split('`').skip(1).step_by(2);
    let explained: BTreeSet<_> = explained
        .filter(|word| word.starts_with("Holdfast") && word.chars().all(|c| c.is_ascii_alphanumeric()))
        .map(str::to_owned)
        .collect();
    let rules: BTreeSet<_> = rules().iter().map(|rule| text(rule, "alert").to_owned()).collect();
    assert_eq!(explained, rules);
}

#[test]
fn the_dashboard_asks_for_what_is_there() {
    let offered = offered();
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut asked_for = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("every panel has a title");
        assert!(ids.insert(panel["id"].as_u64()), "{title}: its id is another panel's");
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().expect("a target asks something");
            check(title, expression, &offered);
            asked_for.extend(asked(expression).into_iter().map(|(name, _)| name));
        }
    }
    assert!(asked_for.len() > 30, "{asked_for:?}");
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        if let Some(query) = variable["query"]["query"].as_str() {
            check("a variable", query, &offered);
        }
    }
}

/// Every name that a document says is one: the table leaves the prefix out.
#[test]
fn operations_names_every_family_and_no_other() {
    let families = Page::parse(PAGE).unwrap().families();
    let section =
        OPERATIONS.split("\n## Metrics\n").nth(1).and_then(|rest| rest.split("\n###").next()).unwrap();
    let rows: String = section.lines().filter(|line| line.starts_with('|')).collect();
    let said: BTreeSet<String> = rows
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| *word != "holdfast_")
        .map(|word| if word.starts_with("process_") { word.to_owned() } else { format!("holdfast_{word}") })
        .collect();
    assert_eq!(said, families);
}
