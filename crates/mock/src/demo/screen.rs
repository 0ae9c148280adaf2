//! The demo's screen, drawn with ratatui. The terminal is restored when the screen is dropped, and after a panic.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};

use crate::demo::board::{Row, Times, View};

/// The width of a bar, in cells.
const BAR: usize = 20;

/// The terminal in its drawing mode. The panic hook and the drop of this value restore it.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: DefaultTerminal,
    /// Set after a panic, when ratatui's hook has restored the terminal: then nothing may be drawn any more. The panic
    /// may have been in a task, which does not end the process.
    restored: Arc<AtomicBool>,
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        let terminal = ratatui::try_init()?;
        let restored = Arc::new(AtomicBool::new(false));
        let (flag, restore) = (Arc::clone(&restored), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            flag.store(true, Ordering::Release);
            restore(panic);
        }));
        Ok(Self { terminal, restored })
    }

    pub(super) fn show(&mut self, view: &View, curl: &str) -> io::Result<()> {
        if self.restored.load(Ordering::Acquire) {
            return Err(io::Error::other("a task panicked, see above"));
        }
        self.terminal.draw(|frame| draw(frame, view, curl))?;
        Ok(())
    }

    /// Whether `q`, Escape or Ctrl-C was pressed since the last call. Does not wait.
    pub(super) fn quit_was_pressed() -> io::Result<bool> {
        while event::poll(Duration::ZERO)? {
            if quits(&event::read()?) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // `restore` would print an error, and panic if it can't: the terminal may be gone.
        let _gone = ratatui::try_restore().is_err();
    }
}

fn quits(event: &Event) -> bool {
    let Event::Key(KeyEvent { code, modifiers, kind, .. }) = event else { return false };
    let control_c = *code == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL);
    *kind == KeyEventKind::Press && (control_c || matches!(code, KeyCode::Char('q') | KeyCode::Esc))
}

fn draw(frame: &mut Frame<'_>, view: &View, curl: &str) {
    let workers = u16::try_from(view.workers.len()).unwrap_or(u16::MAX);
    let [head, figures, table, help] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(5),
        Constraint::Length(workers.saturating_add(2)),
        Constraint::Min(4),
    ])
    .areas(inset(frame.area()));
    frame.render_widget(Paragraph::new(title(view)), head);
    frame.render_widget(Paragraph::new(numbers(view)), figures);
    let mut lines = vec![dim(format!(
        "{:<12}{:>9}{:>9}  {:<width$} {:<width$}",
        "worker",
        "requests",
        "running",
        "share",
        "prefix cache hit rate",
        width = BAR + 6
    ))];
    lines.extend(view.workers.iter().map(worker));
    frame.render_widget(Paragraph::new(lines), table);
    let help_text = vec![
        dim("Join in from another terminal:".to_owned()),
        Line::from(curl),
        dim("q: quit".to_owned()),
    ];
    frame.render_widget(Paragraph::new(help_text).wrap(Wrap { trim: true }), help);
}

fn inset(area: Rect) -> Rect {
    Rect { x: area.x + area.width.min(2), width: area.width.saturating_sub(4), ..area }
}

fn title(view: &View) -> Line<'static> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let routers = match view.routers {
        1 => "one router".to_owned(),
        several => format!("{several} routers as one"),
    };
    let (workers, seconds) = (view.workers.len(), view.elapsed.as_secs());
    Line::from(vec![
        Span::styled("smg demo", bold),
        Span::raw(format!("   {routers}, {workers} workers, {seconds} s")),
    ])
}

fn numbers(view: &View) -> Vec<Line<'static>> {
    let times = |name: &str, times: Times| {
        Line::from(format!(
            "{name:<14}p50 {:>6} ms   p99 {:>6} ms",
            times.p50.as_millis(),
            times.p99.as_millis()
        ))
    };
    let failed = Style::new().fg(if view.failed == 0 { Color::Green } else { Color::Red });
    vec![
        Line::from(vec![
            Span::raw(format!(
                "{:<14}{:>10.1}   {} answered, ",
                "requests/s", view.requests_per_second, view.requests
            )),
            Span::styled(format!("{} failed", view.failed), failed),
        ]),
        times("first token", view.first_token),
        times("whole answer", view.latency),
        dim(view.first_error.clone().unwrap_or_default()),
    ]
}

fn worker(row: &Row) -> Line<'static> {
    let percent = |share: f64| format!("{:>4.0} % ", share * 100.0);
    Line::from(vec![
        Span::raw(format!("{:<12}{:>9}{:>9}  ", row.name, row.requests, row.in_flight)),
        Span::styled(bar(row.share), Style::new().fg(Color::Cyan)),
        Span::raw(percent(row.share)),
        Span::styled(bar(row.hit_rate), Style::new().fg(Color::Green)),
        Span::raw(percent(row.hit_rate)),
    ])
}

/// A share as a bar, with a resolution of an eighth of a cell.
fn bar(share: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "0..=160"
    )]
    let eighths = (share.clamp(0.0, 1.0) * (BAR * 8) as f64).round() as usize;
    let drawn = format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8]);
    format!("{drawn:<BAR$}")
}

fn dim(text: String) -> Line<'static> {
    Line::styled(text, Style::new().add_modifier(Modifier::DIM))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn drawn(width: u16, height: u16) -> String {
        let times = Times { p50: Duration::from_millis(12), p99: Duration::from_millis(345) };
        let row = |name: &str, share, hit_rate| Row {
            name: name.to_owned(),
            requests: 7,
            in_flight: 3,
            share,
            hit_rate,
        };
        let view = View {
            elapsed: Duration::from_secs(9),
            routers: 3,
            requests: 14,
            failed: 1,
            first_error: Some("no luck".to_owned()),
            requests_per_second: 27.5,
            latency: times,
            first_token: times,
            latency_overall: times,
            first_token_overall: times,
            workers: vec![row("worker-1", 0.5, 1.0), row("worker-2", 0.5, 0.0)],
        };
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &view, "curl -N http://127.0.0.1:1/x")).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_screen_shows_all_numbers() {
        let text = drawn(100, 24);
        for part in [
            "3 routers as one, 2 workers, 9 s",
            "27.5   14 answered, 1 failed",
            "p50     12 ms   p99    345 ms",
            "no luck",
            "worker-1            7        3  ██████████            50 % ████████████████████ 100 %",
            "worker-2            7        3  ██████████            50 %                        0 %",
            "curl -N http://127.0.0.1:1/x",
            "q: quit",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }

    #[test]
    fn a_small_terminal_causes_no_panic() {
        for (width, height) in [(1, 1), (3, 2), (20, 5), (300, 3)] {
            drawn(width, height);
        }
    }

    #[test]
    fn bars_have_a_resolution_of_an_eighth() {
        assert_eq!(bar(0.0).trim_end(), "");
        assert_eq!(bar(1.0), "█".repeat(BAR));
        assert_eq!(bar(1.0 / 160.0).trim_end(), "▏");
        assert_eq!(bar(7.0).chars().count(), BAR);
    }

    #[test]
    fn q_escape_and_control_c_quit() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        assert!(quits(&key(KeyCode::Char('q'), KeyModifiers::NONE)));
        assert!(quits(&key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(quits(&key(KeyCode::Esc, KeyModifiers::NONE)));
        assert!(!quits(&key(KeyCode::Char('c'), KeyModifiers::NONE)));
        assert!(!quits(&Event::FocusGained));
    }
}
