// Choices and searched words hide the checks that do not match. Without this script the page shows every check.
(function () {
  var bar = document.querySelector(".filters");
  if (!bar) return;
  bar.hidden = false;
  var choices = Array.from(bar.querySelectorAll("select")), search = bar.querySelector("input"), shown = bar.querySelector("output");
  var records = Array.from(document.querySelectorAll(".record"));
  var texts = new Map();
  function plain(text) { return text.toLowerCase().normalize("NFD").replace(/[\u0300-\u036f]/g, "").replace(/\u2019/g, "'"); }
  function text(record) {  // of the record's claim, with the heading of its answer
    var claim = record.closest(".claim"), answer = record.closest(".answer");
    if (!texts.has(claim)) texts.set(claim, plain(claim.textContent + (answer ? " " + answer.querySelector("h3").textContent : "")));
    return texts.get(claim);
  }
  function apply() {
    var words = plain(search.value).split(/\s+/).filter(Boolean);
    records.forEach(function (record) {
      record.hidden = choices.some(function (choice) { return choice.value && record.dataset[choice.name] !== choice.value; })
        || !words.every(function (word) { return text(record).includes(word); });
    });
    document.querySelectorAll(".claim, .answer, .lab").forEach(function (part) {
      part.hidden = !part.querySelector(".record:not([hidden])");
    });
    document.querySelectorAll("details.cases").forEach(function (cases) {
      cases.open = words.length > 0 || choices.some(function (choice) { return choice.value; });
    });
    var n = records.filter(function (record) { return !record.hidden; }).length;
    shown.textContent = n + " of " + records.length + " checks shown";
  }
  function reveal() {  // shows the target of a link if it is hidden by a filter or inside a closed element
    var target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (!target) return;
    if (target.closest("[hidden]")) { bar.reset(); apply(); }
    var folded = target.closest("details:not([open])");
    if (folded) folded.open = true;
    if (folded || target.getBoundingClientRect().height) target.scrollIntoView();
  }
  bar.addEventListener("change", apply);
  bar.addEventListener("input", apply);
  bar.addEventListener("submit", function (event) { event.preventDefault(); });
  document.addEventListener("keydown", function (event) {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) return;
    event.preventDefault();
    search.focus();
  });
  window.addEventListener("hashchange", reveal);
  apply();
  reveal();
})();
