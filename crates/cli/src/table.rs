//! Plain tables and numbers for people: columns aligned, units said.

/// Which edge of a column its cells touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows of cells, printed with two spaces between columns and a rule under the head.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns; a name that starts with `>` is aligned to the right.
    pub fn new(columns: &[&str]) -> Self {
        let column = |name: &&str| match name.strip_prefix('>') {
            Some(name) => (name.to_owned(), Align::Right),
            None => ((*name).to_owned(), Align::Left),
        };
        Self { columns: columns.iter().map(column).collect(), rows: vec![] }
    }

    /// Adds a row. Cells that are missing stay empty; those too many are dropped.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> = cells.into_iter().take(self.columns.len()).collect();
        row.resize(self.columns.len(), String::new());
        self.rows.push(row);
    }

    /// The same as a table of Markdown, for documents.
    pub fn markdown(&self) -> String {
        let line = |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
        let mut text = line(&mut self.columns.iter().map(|(name, _)| name.clone()));
        let rule = |align: Align| if align == Align::Left { "---" } else { "--:" };
        text += &format!("|{}|\n", self.columns.iter().map(|&(_, a)| rule(a)).collect::<Vec<_>>().join("|"));
        for row in &self.rows {
            text += &line(&mut row.iter().map(|cell| cell.replace('|', "\\|")));
        }
        text
    }

    /// The text, each line ended, without trailing spaces.
    pub fn render(&self) -> String {
        let width = |c: usize| {
            let cells = self.rows.iter().map(|r| r[c].chars().count());
            cells.chain([self.columns[c].0.chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = String::new();
            for ((cell, &width), (_, align)) in cells.zip(&widths).zip(&self.columns) {
                let fill = " ".repeat(width - cell.chars().count());
                match align {
                    Align::Left => text += &format!("{cell}{fill}  "),
                    Align::Right => text += &format!("{fill}{cell}  "),
                }
            }
            text.trim_end().to_owned() + "\n"
        };
        let mut text = line(&mut self.columns.iter().map(|(name, _)| name.as_str()));
        text += &format!("{}\n", "─".repeat(widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)));
        for row in &self.rows {
            text += &line(&mut row.iter().map(String::as_str));
        }
        text
    }
}

/// `1234567` as `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes with a decimal unit, three significant digits: `1.08 MB`.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, &[" B", " kB", " MB", " GB", " TB"])
}

/// A large count with a unit: `40.6 M`.
pub fn short(n: u64) -> String {
    scaled(n as f64, &["", " k", " M", " G", " T"])
}

/// A fraction as a percentage with two decimals: `91.73 %`.
pub fn percent(fraction: f64) -> String {
    format!("{:.2} %", 100.0 * fraction)
}

/// Seconds as people say them: `48 s`, `3 min 20 s`, `1 h 05 min`.
pub fn seconds(s: f64) -> String {
    let whole = s.round().max(0.0) as u64;
    match whole {
        _ if s < 10.0 => format!("{s:.1} s"),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

fn scaled(mut n: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while n >= 999.5 && unit + 1 < units.len() {
        n /= 1000.0;
        unit += 1;
    }
    let decimals = match n {
        _ if unit == 0 || n >= 99.95 => 0,
        _ if n >= 9.995 => 1,
        _ => 2,
    };
    format!("{n:.decimals$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["name", ">bits"]);
        table.row(["conv1".to_owned(), "8".to_owned()]);
        table.row(["a.longer.name".to_owned(), "2.50".to_owned()]);
        let expected = "name           bits\n───────────────────\nconv1             8\na.longer.name  2.50\n";
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.00 kB");
        assert_eq!(bytes(1_079_340), "1.08 MB");
        assert_eq!(short(40_551_424), "40.6 M");
        assert_eq!(percent(0.9173), "91.73 %");
        assert_eq!(seconds(9.94), "9.9 s");
        assert_eq!(seconds(200.0), "3 min 20 s");
        assert_eq!(seconds(3900.0), "1 h 05 min");
    }
}
