-- Does what has become due in any queue.
--
-- Returns the seconds until there is something to do again, '' if nothing is delayed.

local now = time()
tend(now)
local due = first_of(DELAYED)
return text_of(due and math.max(0, due - now))
