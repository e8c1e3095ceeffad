//! Percentiles, tables, and the name of the machine.

/// Measured times in milliseconds.
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn new(mut milliseconds: Vec<f64>) -> Self {
        assert!(!milliseconds.is_empty(), "nothing was measured");
        milliseconds.sort_by(f64::total_cmp);
        Self(milliseconds)
    }

    /// The value below which `percent` of the samples lie (nearest rank).
    pub fn percentile(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }
}

/// A table for people.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    pub fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.to_vec());
    }

    pub fn print(&self) {
        let widths: Vec<usize> = (0..self.rows[0].len())
            .map(|column| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}", width = *width)).collect();
            println!("{}", cells.join("  "));
        }
        println!();
    }
}

/// The machine that the figures are of.
pub fn machine() -> String {
    let machine = flyci::machine::detect();
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(&machine.hardware);
    format!(
        "{} cores of {}, {:.0} GiB, {} {}",
        machine.cpus,
        model.trim_start_matches([' ', '\t', ':']),
        machine.memory.0 as f64 / f64::from(1 << 30),
        std::env::consts::OS,
        std::env::consts::ARCH
    )
}
