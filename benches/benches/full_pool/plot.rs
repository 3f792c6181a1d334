//! Throughput and waits over the number of threads, for ten connections.

use crate::{Arguments, Figures, Hold};
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;
use std::time::Duration;

const CONNECTIONS: u32 = 10;
const THREADS: [usize; 9] = [1, 2, 5, 10, 15, 20, 50, 100, 200];
const HOLDS: [Hold; 3] = [
    Hold::Spins(Duration::from_micros(10)),
    Hold::Sleeps(Duration::from_micros(100)),
    Hold::Sleeps(Duration::from_millis(1)),
];
const COLOURS: [RGBColor; 6] = [
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0x7f, 0x7f, 0x7f),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0xff, 0x7f, 0x0e),
];

/// One pool's line: its name, and its figures for each of [`THREADS`].
type Line = (&'static str, Vec<Figures>);

pub(crate) fn draw(arguments: &Arguments, folder: &Path) -> Result<(), Box<dyn Error>> {
    let sweeps: Vec<(Hold, Vec<Line>)> = HOLDS.map(|hold| (hold, sweep(arguments, hold))).into();
    picture(&folder.join("full_pool_throughput.svg"), &sweeps, "thousand turns in a second", |f| f.rate / 1000.0)?;
    picture(&folder.join("full_pool_waits.svg"), &sweeps, "p99.9 of the wait, ms", |f| f.p999.max(0.1) / 1000.0)
}

fn sweep(arguments: &Arguments, hold: Hold) -> Vec<Line> {
    let mut lines: Vec<Line> = arguments.names().into_iter().map(|name| (name, Vec::new())).collect();
    for threads in THREADS {
        for ((_, line), (_, figures)) in lines.iter_mut().zip(arguments.measure(threads, CONNECTIONS, hold)) {
            line.push(figures);
        }
    }
    lines
}

fn picture(
    file: &Path,
    sweeps: &[(Hold, Vec<Line>)],
    what: &str,
    figure: impl Fn(&Figures) -> f64,
) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::new(file, (1200, 440)).into_drawing_area();
    area.fill(&WHITE)?;
    for (panel, (hold, lines)) in area.split_evenly((1, sweeps.len())).iter().zip(sweeps) {
        let all = || lines.iter().flat_map(|(_, line)| line.iter().map(&figure));
        let (low, high) = (all().fold(f64::MAX, f64::min), all().fold(0.0, f64::max));
        let mut chart = ChartBuilder::on(panel)
            .caption(format!("{CONNECTIONS} connections, held {}", hold.name()), ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(60)
            .build_cartesian_2d((1.0..200.0).log_scale(), (low * 0.8..high * 1.25).log_scale())?;
        chart.configure_mesh().x_desc("threads").y_desc(what).light_line_style(WHITE).draw()?;
        for ((name, line), colour) in lines.iter().zip(COLOURS) {
            let points = THREADS.iter().zip(line).map(|(threads, figures)| (*threads as f64, figure(figures)));
            let style = colour.stroke_width(if *name == "forksafe" { 3 } else { 1 });
            chart
                .draw_series(LineSeries::new(points, style).point_size(2))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
    }
    area.present()?;
    Ok(())
}
