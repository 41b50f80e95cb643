// The console's keys, and what a browser tells the server of itself: the time zone, in which times are shown.
(() => {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const known = document.cookie.split("; ").find((part) => part.startsWith("keepsake_zone="));
  if (zone && (!known || known.slice(14) !== zone)) {
    document.cookie = `keepsake_zone=${zone}; path=/console; max-age=31536000; samesite=lax`;
    if (document.cookie.includes(`keepsake_zone=${zone}`)) location.reload();
  }
  new MutationObserver((_, observer) => {
    const page = document.getElementById("console");
    if (!page) return;
    document.documentElement.lang = page.dataset.language;
    observer.disconnect();
  }).observe(document.documentElement, { childList: true, subtree: true });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, [contenteditable]");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const search = document.querySelector(".search input, .search textarea");
      if (search) { event.preventDefault(); search.focus(); search.select(); }
    } else if (event.key === "Escape" && typing) typing.blur();
  });
})();
