//! A reader of Prometheus' text format 0.0.4, strict where a scraper is lenient: what it takes, all of them take.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::wait::SECOND;

/// One series: its name and labels.
pub type Series = (String, BTreeMap<String, String>);

/// A page that was read whole.
#[derive(Debug, Clone, Default)]
pub struct Page {
    types: BTreeMap<String, String>,
    helps: BTreeSet<String>,
    values: BTreeMap<Series, f64>,
}

/// What a server on loopback answers to the first line of a request.
///
/// # Panics
/// When it does not answer.
#[must_use]
pub fn ask(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the page is served on loopback");
    stream.set_read_timeout(Some(20 * SECOND)).expect("a socket takes a timeout");
    write!(stream, "{request} HTTP/1.1\r\nHost: x\r\n\r\n").expect("it takes a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("one page, then the end");
    answer
}

impl Page {
    /// The page that an agent serves on loopback.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn scrape(port: u16) -> Self {
        let answer = ask(port, "GET /metrics");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/plain; version=0.0.4"), "{head}");
        Self::parse(body).unwrap_or_else(|why| panic!("{why}\n{body}"))
    }

    /// Reads a page.
    ///
    /// # Errors
    /// The line and what is wrong with it: a family without HELP and TYPE before its series, one that is said twice, series
    /// of a family that are apart, a series that is there twice, a value that is no number, a counter without `_total`, or
    /// a histogram whose buckets do not grow to its count.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut page = Self::default();
        let mut family = String::new();
        if !text.ends_with('\n') {
            return Err("the last line does not end".to_owned());
        }
        for line in text.lines() {
            let took = match line.strip_prefix("# ") {
                Some(comment) => page.comment(comment, &mut family),
                None => page.sample(line, &family),
            };
            took.map_err(|why| format!("{line:?}: {why}"))?;
        }
        page.check_histograms()?;
        Ok(page)
    }

    /// The name of every family.
    #[must_use]
    pub fn families(&self) -> BTreeSet<String> {
        self.types.keys().cloned().collect()
    }

    /// The names that its series have: of a histogram `_bucket`, `_sum` and `_count`.
    #[must_use]
    pub fn series_names(&self) -> BTreeSet<String> {
        let names = |(family, kind): (&String, &String)| match kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"].map(|end| format!("{family}{end}")).to_vec(),
            _ => vec![family.clone()],
        };
        self.types.iter().flat_map(names).collect()
    }

    /// The value of one series with exactly these labels.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.values.get(&(name.to_owned(), labels)).copied()
    }

    /// Every series.
    pub fn all(&self) -> impl Iterator<Item = (&Series, f64)> {
        self.values.iter().map(|(series, value)| (series, *value))
    }

    fn comment(&mut self, comment: &str, family: &mut String) -> Result<(), String> {
        let (what, rest) = comment.split_once(' ').ok_or("neither HELP nor TYPE")?;
        let (name, text) = rest.split_once(' ').ok_or("it says nothing")?;
        check_name(name)?;
        match what {
            "HELP" => {
                if !self.helps.insert(name.to_owned()) {
                    return Err("HELP is said twice".to_owned());
                }
                name.clone_into(family);
            }
            "TYPE" => {
                if name != *family {
                    return Err("TYPE does not follow its HELP".to_owned());
                }
                if !["counter", "gauge", "histogram"].contains(&text) {
                    return Err(format!("{text:?} is not a type that we have"));
                }
                if (text == "counter") != name.ends_with("_total") {
                    return Err("counters, and only they, end in _total".to_owned());
                }
                if self.types.insert(name.to_owned(), text.to_owned()).is_some() {
                    return Err("TYPE is said twice".to_owned());
                }
            }
            _ => return Err("neither HELP nor TYPE".to_owned()),
        }
        Ok(())
    }

    fn sample(&mut self, line: &str, family: &str) -> Result<(), String> {
        let end = line.find(['{', ' ']).ok_or("no value")?;
        let (name, rest) = line.split_at(end);
        check_name(name)?;
        let kind = self.types.get(family).map(String::as_str);
        let belongs = match kind {
            Some("histogram") => {
                name.strip_prefix(family).is_some_and(|end| ["_bucket", "_sum", "_count"].contains(&end))
            }
            Some(_) => name == family,
            None => false,
        };
        if !belongs {
            return Err(format!("it is not of the family before it, {family}"));
        }
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (BTreeMap::new(), rest),
        };
        let value = rest.strip_prefix(' ').ok_or("no blank before the value")?;
        let value = match value {
            "+Inf" => f64::INFINITY,
            number => number.parse().map_err(|_| format!("{number:?} is not a value"))?,
        };
        match self.values.insert((name.to_owned(), labels), value) {
            None => Ok(()),
            Some(_) => Err("the series is there twice".to_owned()),
        }
    }

    fn check_histograms(&self) -> Result<(), String> {
        for (family, _) in self.types.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut of: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
            for ((name, labels), value) in &self.values {
                if *name == format!("{family}_bucket") {
                    let mut labels = labels.clone();
                    let le = labels.remove("le").ok_or_else(|| format!("{family}: a bucket without le"))?;
                    let bound = if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap_or(f64::NAN) };
                    of.entry(labels).or_default().push((bound, *value));
                }
            }
            for (labels, mut buckets) in of {
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                let told = format!("{family}{labels:?}");
                if buckets.windows(2).any(|two| two[0].1 > two[1].1) {
                    return Err(format!("{told}: buckets do not grow: {buckets:?}"));
                }
                let last = buckets.last().filter(|(bound, _)| bound.is_infinite()).map(|(_, count)| *count);
                let count = self.values.get(&(format!("{family}_count"), labels.clone())).copied();
                let sum = self.values.get(&(format!("{family}_sum"), labels));
                if last.is_none() || last != count || sum.is_none() {
                    return Err(format!("{told}: the last bucket has {last:?}, the count is {count:?}"));
                }
            }
        }
        Ok(())
    }
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Result<(BTreeMap<String, String>, &str), String> {
    let mut labels = BTreeMap::new();
    while !rest.starts_with('}') {
        let (key, after) = rest.split_once("=\"").ok_or("a label without a value")?;
        check_name(key)?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().ok_or("a label's value does not end")? {
                (_, '\\') => value.push(match chars.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, found @ ('\\' | '"'))) => found,
                    found => return Err(format!("{found:?} is no escape")),
                }),
                (at, '"') => break at,
                (_, plain) => value.push(plain),
            }
        };
        if labels.insert(key.to_owned(), value).is_some() {
            return Err(format!("the label {key} is there twice"));
        }
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    Ok((labels, &rest[1..]))
}

fn check_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(good) {
        return Err(format!("{name:?} is not a name"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_and_a_broken_one_is_not() {
        let head = "# HELP a_total b c\n# TYPE a_total counter\n";
        let page = Page::parse(&format!("{head}a_total{{x=\"1\\\"\",y=\"\"}} 5\na_total 6\n")).unwrap();
        assert_eq!(page.value("a_total", &[("x", "1\""), ("y", "")]), Some(5.0));
        assert_eq!(page.value("a_total", &[]), Some(6.0));
        for bad in [
            "a_total 1\n",
            &format!("{head}{head}"),
            &format!("{head}a_total 1\na_total 1\n"),
            &format!("{head}a_total x\n"),
            &format!("{head}a_total{{x=\"1}} 1\n"),
            &format!("{head}b_total 1\n"),
            &format!("{head}a_total 1"),
            "# HELP a b\n# TYPE a counter\n",
            "# HELP h b\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n",
            "# HELP h b\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 2\n",
        ] {
            assert!(Page::parse(bad).is_err(), "{bad}");
        }
    }
}
