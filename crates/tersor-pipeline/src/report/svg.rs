//! SVG drawing: scales, axes, shapes.

/// Escapes text for HTML.
pub(crate) fn escape(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '&' => "&amp;".into(),
            '<' => "&lt;".into(),
            '>' => "&gt;".into(),
            '"' => "&quot;".into(),
            c => c.to_string(),
        })
        .collect()
}

/// Line colours, distinguishable with colour blindness as far as possible.
pub(crate) const COLOURS: [&str; 14] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#444444", "#8c564b", "#17806d",
    "#a50f5b", "#7f9a00", "#3b4cc0", "#c9a227",
];

/// Colour of the original model in every chart.
pub(crate) const ORIGINAL: &str = "#8a97a5";

/// A linear or logarithmic scale from values to pixels.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

impl Scale {
    /// Maps values `low ..= high` to pixels `from ..= to`. An empty range is widened.
    pub(crate) fn new([low, high]: [f64; 2], [from, to]: [f64; 2], log: bool) -> Self {
        let (low, high) = if log { (low.max(1e-12), high.max(1e-12)) } else { (low, high) };
        let (low, high) = if high > low { (low, high) } else { (low * 0.9, high * 1.1 + 1e-9) };
        Self { low, high, from, to, log }
    }

    /// Returns the pixel of a value.
    pub(crate) fn at(&self, v: f64) -> f64 {
        let f = |v: f64| if self.log { v.max(1e-12).ln() } else { v };
        let share = (f(v) - f(self.low)) / (f(self.high) - f(self.low));
        self.from + share.clamp(-0.05, 1.05) * (self.to - self.from)
    }

    /// Returns the round values to mark on an axis.
    pub(crate) fn ticks(&self) -> Vec<f64> {
        // Within a decade, a logarithmic axis has evenly spaced values too.
        if self.log && self.high / self.low > 8.0 {
            let decades = (self.high / self.low).log10();
            let steps: &[f64] = if decades > 2.5 { &[1.0] } else { &[1.0, 3.0] };
            let first = self.low.log10().floor() as i32;
            let last = self.high.log10().ceil() as i32;
            let all = (first..=last).flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)));
            return all.filter(|v| (self.low..=self.high).contains(v)).collect();
        }
        let raw = (self.high - self.low) / 5.0;
        let unit = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * unit).find(|s| *s >= raw).unwrap_or(raw);
        let first = (self.low / step).ceil() as i64;
        (first..).map(|i| i as f64 * step).take_while(|v| *v <= self.high * (1.0 + 1e-12)).collect()
    }
}

/// Returns the label of a tick.
pub(crate) fn label(v: f64) -> String {
    if v != 0.0 && (v.abs() < 1e-3 || v.abs() >= 1e5) {
        format!("{v:.0e}")
    } else {
        format!("{}", (v * 1e4).round() / 1e4)
    }
}

/// A drawing.
pub(crate) struct Svg {
    body: String,
    size: [f64; 2],
}

impl Svg {
    /// Returns an empty drawing.
    pub(crate) fn new(width: f64, height: f64) -> Self {
        Self { body: String::new(), size: [width, height] }
    }

    /// Draws a line, dashed or solid.
    pub(crate) fn line(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], colour: &str, dashed: bool) {
        let dash = if dashed { " stroke-dasharray=\"5 4\"" } else { "" };
        self.body +=
            &format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"{dash}/>");
    }

    /// Draws a line through points.
    pub(crate) fn path(&mut self, points: &[[f64; 2]], colour: &str) {
        let list: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", p[0], p[1])).collect();
        self.body += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>",
            list.join(" ")
        );
    }

    /// Draws a filled circle with a tooltip.
    pub(crate) fn dot(&mut self, [x, y]: [f64; 2], colour: &str, tip: &str) {
        self.body += &format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"><title>{}</title></circle>",
            escape(tip)
        );
    }

    /// Draws a filled rectangle.
    pub(crate) fn bar(&mut self, [x, y]: [f64; 2], [w, h]: [f64; 2], colour: &str) {
        self.body += &format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{h:.1}\" fill=\"{colour}\"/>",
            w.max(0.5)
        );
    }

    /// Draws text; `anchor` is `start`, `middle` or `end`.
    pub(crate) fn text(&mut self, [x, y]: [f64; 2], anchor: &str, class: &str, text: &str) {
        self.body += &format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{}</text>",
            escape(text)
        );
    }

    /// Draws grid lines, tick labels and axis names of a plot.
    pub(crate) fn axes(&mut self, x: Scale, y: Scale, names: [&str; 2]) {
        let ([left, right], [bottom, top]) = ([x.from, x.to], [y.from, y.to]);
        for v in y.ticks() {
            self.line([left, y.at(v)], [right, y.at(v)], "#e6ebf0", false);
            self.text([left - 6.0, y.at(v) + 4.0], "end", "axis", &label(v));
        }
        for v in x.ticks() {
            self.line([x.at(v), bottom], [x.at(v), bottom + 4.0], "#8a97a5", false);
            self.text([x.at(v), bottom + 17.0], "middle", "axis", &label(v));
        }
        self.line([left, bottom], [right, bottom], "#8a97a5", false);
        self.text([(left + right) / 2.0, bottom + 34.0], "middle", "axis", names[0]);
        self.text([left, top - 8.0], "start", "axis", names[1]);
    }

    /// Returns the `svg` element.
    pub(crate) fn finish(self) -> String {
        format!("<svg viewBox=\"0 0 {} {}\" role=\"img\">{}</svg>", self.size[0], self.size[1], self.body)
    }
}
