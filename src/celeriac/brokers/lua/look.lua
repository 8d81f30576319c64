-- Looks whether there is something to receive.
--
-- ARGV  4... names of lists
-- Returns the seconds until there may be something: '0' if there is, '' if nothing is known.

for first = 4, #ARGV, 1000 do
  if call('EXISTS', unpack(ARGV, first, math.min(first + 999, #ARGV))) > 0 then
    return '0'
  end
end
local due = earlier(first_of(DELAYED), first_of(LEASES))
return text_of(due and math.max(0, due - time()))
