//! The little of YAML that etcd's configuration file is made of: keys with scalars or lists of scalars, at most one
//! table deep.

use saphyr_parser::{Event, Parser, ScalarStyle};

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    /// The key, behind its table and a point where it is in one.
    pub(super) key: String,
    /// The key's line, from 1.
    pub(super) line: usize,
    /// The value; a list is joined by commas.
    pub(super) text: String,
}

/// Why a text is no such file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) line: usize,
    pub(super) message: String,
}

/// A table or list that is open.
enum Open {
    /// With the key whose value comes next, if it was read.
    Table(Option<(String, usize)>),
    List(Vec<String>),
}

/// Reads a file. A key with nothing or `null` behind it is left out, as if it were not there.
pub(super) fn leaves(text: &str) -> Result<Vec<Leaf>, Bad> {
    let mut leaves = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| Bad {
            line: e.marker().line(),
            message: e.info().to_string(),
        })?;
        let line = span.start.line();
        let bad = |message: &str| {
            Err(Bad {
                line,
                message: message.to_string(),
            })
        };
        match event {
            Event::DocumentStart(_) if documents > 0 => return bad("there is a second document"),
            Event::DocumentStart(_) => documents += 1,
            Event::Alias(_) => return bad("aliases are not supported"),
            Event::Scalar(value, style, ..) => {
                let null = style == ScalarStyle::Plain
                    && matches!(value.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                match open.last_mut() {
                    None if null => {}
                    None => return bad("expected keys and values, found a scalar"),
                    Some(Open::List(items)) => {
                        if value.contains(',') {
                            return bad("a list's item contains a comma");
                        }
                        items.push(value.into_owned());
                    }
                    Some(Open::Table(key @ None)) => *key = Some((value.into_owned(), line)),
                    Some(Open::Table(_)) => {
                        if let Some((key, line)) = take_key(&mut open)
                            && !null
                        {
                            leaves.push(Leaf {
                                key,
                                line,
                                text: value.into_owned(),
                            });
                        }
                    }
                }
            }
            Event::MappingStart(..) => match open.as_slice() {
                [] | [Open::Table(Some(_))] => open.push(Open::Table(None)),
                [.., Open::Table(None)] => return bad("expected a key, found a table"),
                _ => return bad("a table is nested too deep"),
            },
            Event::SequenceStart(..) => match open.last() {
                Some(Open::Table(Some(_))) => open.push(Open::List(Vec::new())),
                _ => return bad("expected keys and values, found a list"),
            },
            Event::MappingEnd => {
                open.pop();
                if let Some(Open::Table(key)) = open.last_mut() {
                    *key = None;
                }
            }
            Event::SequenceEnd => {
                if let Some(Open::List(items)) = open.pop()
                    && let Some((key, line)) = take_key(&mut open)
                {
                    leaves.push(Leaf {
                        key,
                        line,
                        text: items.join(","),
                    });
                }
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
    }
    Ok(leaves)
}

/// The whole key whose value was just read, which the innermost table forgets.
fn take_key(open: &mut [Open]) -> Option<(String, usize)> {
    let outer = match open {
        [Open::Table(Some((outer, _))), _, ..] => format!("{outer}."),
        _ => String::new(),
    };
    match open.last_mut() {
        Some(Open::Table(key)) => {
            let (inner, line) = key.take()?;
            Some((format!("{outer}{inner}"), line))
        }
        _ => None,
    }
}
