// Without this script the page shows every claim; with it, three choices hide what they do not match.
(function () {
  var bar = document.querySelector(".filters");
  if (!bar) return;
  bar.hidden = false;
  var choices = bar.querySelectorAll("select"), shown = bar.querySelector("output");
  function apply() {
    var visible = 0, all = document.querySelectorAll(".record");
    all.forEach(function (record) {
      var fits = Array.prototype.every.call(choices, function (choice) {
        return !choice.value || record.dataset[choice.name] === choice.value;
      });
      record.hidden = !fits;
      visible += fits;
    });
    document.querySelectorAll(".claim").forEach(function (claim) {
      claim.hidden = !claim.querySelector(".record:not([hidden])");
    });
    shown.textContent = visible + " of " + all.length + " shown";
  }
  bar.addEventListener("change", apply);
  window.addEventListener("hashchange", function () {  // a link to a claim that a choice hides shows it again
    var target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.closest("[hidden]")) { choices.forEach(function (choice) { choice.value = ""; }); apply(); target.scrollIntoView(); }
  });
  apply();
})();
