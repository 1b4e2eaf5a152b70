"""Before the story: the processes start, and the admin connects Cloud Resell."""

from __future__ import annotations

import signal
import threading

from bss_sync.demo.calls import Caller
from bss_sync.demo.narration import Narrator
from bss_sync.demo.stage import DISTRIBUTOR, Stage
from bss_sync.demo.world import CATALOGUE, CONNECTION, RESELLER, World, require

OPERATOR = "mara"


def open_world(stage: Stage, narrator: Narrator) -> World:
    """Start serve and the two BSSs, then do what an admin does with the command line."""
    narrator.chapter(
        "The stage",
        f"{DISTRIBUTOR} is the distributor, {RESELLER} a reseller with a BSS of its own. These processes run:",
    )
    serving = stage.serve()
    reseller, own_bss = stage.simulate("reseller"), stage.simulate("distributor")
    stage.ready(serving)
    narrator.table(
        ["process", "pid#", "address"],
        [
            ["bss-sync serve: door, API, workers, scheduler, PostgreSQL", str(serving.pid), serving.url],
            [f"{RESELLER}'s BSS (simulated, behind HTTP)", str(reseller.pid), reseller.url],
            [f"{DISTRIBUTOR}'s own BSS (simulated, behind HTTP)", str(own_bss.pid), own_bss.url],
        ],
    )
    narrator.gap()
    token = _administer(stage, narrator, reseller.url, own_bss.url)
    api = Caller(serving.url, {"Authorization": f"Bearer {token}"})
    return World(stage, narrator, Caller(reseller.url), Caller(own_bss.url), api)


def _administer(stage: Stage, narrator: Narrator, reseller_url: str, own_bss_url: str) -> str:
    """The catalogue, Cloud's own BSS, the connection, a person's token. Returns the token."""
    catalogue = stage.home / "catalogue.csv"
    catalogue.write_text("code,name\n" + "".join(f"{code},{name}\n" for code, name in CATALOGUE.items()))
    added = stage.administer("product", "import", str(catalogue))
    narrator.act("the admin imports the catalogue", f"{added['added']} products: they decide what is in scope")
    target = ["--connector", "simulator", "--set", f"base_url={own_bss_url}", "--set", "allow_http_private=true"]
    stage.administer("target", "set", *target, "--drift", "repair", "--poll-seconds", "1")
    narrator.act(f"… names {DISTRIBUTOR}'s own BSS", "looked at every second for edits behind the back")
    source = ["--connector", "simulator", "--set", f"base_url={reseller_url}", "--set", "allow_http_private=true"]
    options = [*source, "--set", "poll_seconds=0", "--display-name", RESELLER, "--activate"]
    made = stage.administer("connection", "add", CONNECTION, *options)
    narrator.act(f"… connects {RESELLER} and activates it", "checks passed; it is live")
    answer = Caller(reseller_url).call("POST", "/webhook-endpoint", {"url": made["url"], "secret": made["secret"]})
    require("the reseller's BSS takes the webhook's address", 200, answer)
    narrator.act(f"{RESELLER} enters address and secret", "its BSS signs and pushes every change")
    token: str = stage.administer("token", "create", "--role", "operator", "--name", OPERATOR)["token"]
    narrator.act(f"the admin gives {OPERATOR} of {DISTRIBUTOR} a token", "role operator")
    return token


def keep_running(world: World) -> None:
    """Say how to look at it, then wait for Ctrl-C. Ends also when one of the processes does."""
    stage, narrator = world.stage, world.narrator
    narrator.chapter("It keeps running", "In another terminal:")
    narrator.quote(
        f"export BSS_SYNC_HOME={stage.home} BSS_SYNC_BIND={stage.bind}\n"
        "bss-sync tree\n"
        f"bss-sync subscription history {CONNECTION}/sub-x\n"
        f"bss-sync explain subscription {CONNECTION}/sub-x quantity"
    )
    narrator.say(f"As {OPERATOR} of {DISTRIBUTOR}, over the API:")
    narrator.quote(
        f"export AUTHORIZATION='Authorization: {world.api.headers['Authorization']}'\n"
        f'curl -H "$AUTHORIZATION" {world.api.url}/v1/subscriptions'
    )
    narrator.say(f"As {RESELLER}, in its BSS; then see it arrive in {DISTRIBUTOR}'s:")
    narrator.quote(
        f"curl -X PATCH {world.reseller.url}/subscriptions/sub-x -d '{{\"quantity\": 99}}'\n"
        f"curl {world.own_bss.url}/records"
    )
    narrator.gap()
    narrator.say("Ctrl-C ends every process and removes the data.")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pause = threading.Event()
    while not pause.wait(1.0):
        stage.check_alive()
