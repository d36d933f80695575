// Typesets the formulas of a page, and lets the keyboard reach what scrolls.
"use strict";

function typeset(element) {
  const holder = element.querySelector(".formula") || element;
  const source = holder.textContent.trim();
  const display = source.startsWith("\\[");
  if (!display && !source.startsWith("\\(")) return;
  const options = {
    displayMode: display,
    strict: "ignore", // text in formulas may hold dashes and quotes
  };
  try {
    katex.render(source.slice(2, -2), holder, options);
  } catch (error) {
    console.error(error.message); // the source stays on the page
  }
}

// A box that scrolls must take the keyboard's focus; one that does not must
// not be a stop on the way. Checked again when sizes change.
const BOXES =
  ".formula, span.math, pre, .cell_output .output, " +
  ".pst-scrollable-table-container, dt.sig";

function reach(box) {
  const scrolls = box.scrollWidth > box.clientWidth + 1;
  if (scrolls && !box.hasAttribute("tabindex")) {
    box.tabIndex = 0;
    box.dataset.reach = "scrolls";
  } else if (!scrolls && box.dataset.reach) {
    box.removeAttribute("tabindex");
    delete box.dataset.reach;
  }
}

// A formula in a line that is wider than the page gets a box of its own.
function fit(formula) {
  const inner = formula.querySelector(".katex");
  const room = formula.parentElement.clientWidth;
  if (!inner || !room) return;
  formula.classList.remove("wide");
  const widest = Math.max(
    ...[...inner.querySelectorAll(".katex-base")].map((base) => base.offsetWidth),
  );
  formula.classList.toggle("wide", widest > room);
}

function settle() {
  document.querySelectorAll("span.math").forEach(fit);
  document.querySelectorAll(BOXES).forEach(reach);
}

document.addEventListener("DOMContentLoaded", () => {
  if (window.katex) document.querySelectorAll(".math").forEach(typeset);
  settle();
  let pending;
  const later = () => {
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(settle);
  };
  document.fonts.ready.then(later);
  // Also when something unfolds, which makes the article longer.
  const article = document.querySelector("article");
  if (article) new ResizeObserver(later).observe(article);
});
