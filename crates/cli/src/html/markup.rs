//! HTML that cannot be broken out of.
//!
//! Owns the writing of markup. Promises, by its types, that markup is only what stands in this program's source: all else goes
//! in as text, with every character escaped that HTML gives a meaning to, and with those made visible that would steer a
//! reader's eye unseen (control characters, and what turns the direction of writing).

use std::fmt::Write as _;

/// A piece of a page.
#[derive(Debug, Clone, Default)]
pub struct Markup(String);

impl Markup {
    /// Markup of this program's own.
    pub fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text from anywhere.
    pub fn text(&mut self, text: &str) -> &mut Self {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                c if is_hidden(c) => {
                    let _ = write!(self.0, "\\u{{{:x}}}", u32::from(c));
                }
                c => self.0.push(c),
            }
        }
        self
    }

    /// A coordinate, to a tenth.
    pub fn at(&mut self, number: f64) -> &mut Self {
        // What is no number would be a broken drawing; it is at the origin then.
        let number = if number.is_finite() { number } else { 0.0 };
        let _ = write!(self.0, "{number:.1}");
        self
    }

    /// Another piece.
    pub fn add(&mut self, other: &Markup) -> &mut Self {
        self.0.push_str(&other.0);
        self
    }

    /// The whole.
    pub fn into_string(self) -> String {
        self.0
    }
}

/// Characters that show nothing, or turn what stands around them.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{FEFF}')
        || ('\u{200B}'..='\u{200F}').contains(&c)
        || ('\u{2028}'..='\u{202E}').contains(&c)
        || ('\u{2060}'..='\u{206F}').contains(&c)
        || ('\u{E0000}'..='\u{E007F}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_text_and_what_hides_is_shown() {
        let mut page = Markup::default();
        page.raw("<b>").text("<script>\"a\" & 'b'</script>\u{202e}\u{7}\n ü").raw("</b>").at(f64::NAN).at(1.25);
        assert_eq!(
            page.into_string(),
            "<b>&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39;&lt;/script&gt;\\u{202e}\\u{7}\\u{a} ü</b>0.01.2"
        );
    }
}
