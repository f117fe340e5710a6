// Three choices hide the checks that do not match. Without this script the page shows every check.
(function () {
  var bar = document.querySelector(".filters");
  if (!bar) return;
  bar.hidden = false;
  var choices = Array.from(bar.querySelectorAll("select")), shown = bar.querySelector("output");
  function apply() {
    var all = Array.from(document.querySelectorAll(".record"));
    all.forEach(function (record) {
      record.hidden = choices.some(function (choice) { return choice.value && record.dataset[choice.name] !== choice.value; });
    });
    document.querySelectorAll(".claim").forEach(function (claim) {
      claim.hidden = !claim.querySelector(".record:not([hidden])");
    });
    document.querySelectorAll("details.cases").forEach(function (cases) {
      cases.open = choices.some(function (choice) { return choice.value; });
    });
    shown.textContent = all.filter(function (record) { return !record.hidden; }).length + " of " + all.length + " shown";
  }
  function reveal() {  // shows the target of a link if it is hidden by a filter or inside a closed element
    var target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (!target) return;
    if (target.closest("[hidden]")) { choices.forEach(function (choice) { choice.value = ""; }); apply(); }
    var folded = target.closest("details:not([open])");
    if (folded) { folded.open = true; target.scrollIntoView(); }
  }
  bar.addEventListener("change", apply);
  window.addEventListener("hashchange", reveal);
  apply();
  reveal();
})();
