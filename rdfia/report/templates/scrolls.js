// Marks each table that is wider than its place: it scrolls sideways, and style.css says so above it.
(function () {
  if (!window.ResizeObserver) return;
  var sizes = new ResizeObserver(function (entries) {
    entries.forEach(function (entry) {
      entry.target.classList.toggle("scrolls", entry.target.scrollWidth > entry.target.clientWidth);
    });
  });
  document.querySelectorAll(".wide").forEach(function (part) { sizes.observe(part); });
})();
